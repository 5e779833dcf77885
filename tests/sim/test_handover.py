"""Faults amid what takes a moment: a seat is handed over, a stage is followed, a copy is taken, a spare is promoted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import torch

from distqat.ids import Endpoint, StageIndex
from distqat.roles.copies.copy import Carried, Copy
from distqat.roles.flight import Handover
from distqat.roles.orders.order import Order
from distqat.roles.remote import Remote
from distqat.roles.seat import Seat
from distqat.roles.status import ExpertStatus, PeerStatus, SwarmStatus
from tests.sim.gate import nothing
from tests.sim.swarm import PORT, World, open_world, peer_of, steps, training
from tests.sim.test_failover import followers, seat_of, trained
from tests.sim.test_swarm import books, expert_digests
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(240)]

LATER = [pytest.param(count, marks=pytest.mark.soak) for count in (3, 5)]
"""Messages after which the blow falls, beside the first."""

DRAIN_SECONDS = 30.0
"""In which a daemon leaves, whatever befalls its heir."""

SIBLINGS = ("model.stages=1", "plan.max_pipelines=2", "plan.copy_seconds=0")
"""Two pipelines of one stage: of three experts one is a spare, which takes no copies but the last."""


@asynccontextmanager
async def trap(world: World, host: str, first: str, count: int) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the host has sent or taken so many messages since that first one, in the block."""
    struck, passed = asyncio.Event(), 0

    async def hook(what: str) -> None:
        nonlocal passed
        if passed or what == first:
            passed += 1
        if passed > count:
            struck.set()

    world.gate(host).hook = hook
    try:
        yield struck
    finally:
        world.gate(host).hook = nothing


async def goes_on(world: World, pipelines: int, without: str) -> SwarmStatus:
    """So many pipelines train on, over others than that host; nothing is lost, and siblings agree."""
    status = await world.until(
        "head", lambda s: len(training(s)) == pipelines and without not in str([line.route for line in s.pipelines()])
    )
    rounds = max(expert.round for _, expert in status.experts())
    later = await world.until(
        "head",
        lambda s: steps(s) > steps(status) + 20 and all(e.round > rounds + 1 for _, e in s.experts() if e.seated),
    )
    assert (books(later).lost, books(later).doubled) == (0, 0)
    assert all(len(digests) == 1 for digests in expert_digests(later).values())
    return later


async def with_spare(world: World) -> tuple[SwarmStatus, str, str]:
    """Two pipelines and a warm spare: the host of an expert that has a seat, and that of the spare."""
    await world.start("head", "client")
    for host in ("alice", "bob", "spare"):
        await world.start(host, "expert", join="head")
    status = await world.until("head", lambda s: len(training(s)) == 2 and steps(s) > 20 and followers(s))
    return status, seat_of(status, 0)[0].endpoint.host, followers(status)[0][0].endpoint.host


@pytest.mark.parametrize("count", [1, *LATER])
def test_an_heir_that_dies_amid_the_handing_over_costs_the_leaver_nothing(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *SIBLINGS) as world:
            _, leaver, spare = await with_spare(world)
            loop = asyncio.get_running_loop()
            async with trap(world, spare, "> Take", count) as struck, asyncio.TaskGroup() as group:
                began = loop.time()
                leaving = group.create_task(world.stop(leaver))
                await struck.wait()
                await world.crash(spare)
                await leaving
            assert loop.time() - began < DRAIN_SECONDS
            await goes_on(world, 1, leaver)

    run_virtual(scenario(), debug=False)


@pytest.mark.parametrize("count", [1, *LATER])
def test_a_leaver_that_is_killed_amid_the_handing_over_is_replaced_all_the_same(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *SIBLINGS) as world:
            _, leaver, spare = await with_spare(world)
            async with trap(world, leaver, "Take >", count) as struck:
                world.leave(leaver)
                await struck.wait()
                await world.crash(leaver)
            after = await goes_on(world, 2, leaver)
            assert spare in str([line.route for line in after.pipelines()])

    run_virtual(scenario(), debug=False)


def test_what_rounds_owe_and_eager_momenta_go_to_the_heir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last: list[Carried] = []
    taken: list[tuple[dict[int, torch.Tensor], dict[int, torch.Tensor], float]] = []
    give, go_on = Seat._last_copy, Handover.resume

    async def given(seat: Seat, stack: AsyncExitStack) -> Copy:
        # The last round may be one without siblings, in which no codec has lost anything.
        owed = torch.arange(1.0, 1.0 + seat.averager.context.shapes[0].num_elements)
        monkeypatch.setattr(seat.averager.committed.feedback, "save", lambda: {0: owed})
        copy = await give(seat, stack)
        last.append(copy.carried)
        return copy

    def resumed(handover: Handover, momenta: Mapping[int, torch.Tensor], share: float) -> None:
        go_on(handover, momenta, share)
        taken.append((handover._averager.committed.feedback.save(), handover.momenta(), handover.last_share))

    monkeypatch.setattr(Seat, "_last_copy", given)
    monkeypatch.setattr(Handover, "resume", resumed)
    eager = ("sync.overlap=2", "sync.eager=true", "sync.warmup_steps=0")

    async def scenario() -> None:
        async with open_world(tmp_path, *SIBLINGS, *eager) as world:
            _, leaver, _ = await with_spare(world)
            await world.stop(leaver)
            await goes_on(world, 2, leaver)
        ((residuals, momenta, share),) = taken
        (carried,) = last
        assert share == carried.share > 0
        for found, expected in ((residuals, carried.residuals), (momenta, carried.momenta)):
            assert found.keys() == expected.keys() == {0}
            assert torch.equal(found[0], expected[0])
            assert found[0].any()

    run_virtual(scenario(), debug=False)


def of(status: SwarmStatus, host: str) -> ExpertStatus:
    """What the expert on that host does."""
    peer: PeerStatus = peer_of(status, host)
    return next(role.expert for role in peer.roles if role.expert is not None)


@pytest.mark.parametrize("first", ["> Describe", "> Fetch"])
def test_a_follower_that_is_sent_elsewhere_amid_its_fetch_follows_there(tmp_path: Path, first: str) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "plan.cooldown=1000") as world:
            before = await trained(world, ("alice", "bob"))
            run = before.peers[0].run
            assert run is not None
            remote = Remote(world.network.transport("observer"), Endpoint("spare", PORT), 20.0)
            await world.start("spare", "expert", join="head")
            async with trap(world, "spare", first, 1) as struck:
                await struck.wait()
                there = StageIndex(1 - (of(await world.status("spare"), "spare").follows or 0))
                await remote.assign(run, Order(there, is_seated=False))
            warm = await world.until("head", lambda s: followers(s) and of(s, "spare").follows == there)
            victim = seat_of(warm, there)[0].endpoint.host
            await world.crash(victim)
            after = await goes_on(world, 1, victim)
            assert training(after)[0].route[there].endpoint.host == "spare"
            assert of(after, "spare").stage == there

    run_virtual(scenario(), debug=False)


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_a_spare_is_promoted_while_it_takes_a_copy_of_who_dies(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "plan.copy_seconds=0.3") as world:
            before = await trained(world, ("alice", "bob", "spare"))
            ((spare, held),) = followers(before)
            assert held.follows is not None
            victim = seat_of(before, held.follows)[0].endpoint.host
            async with trap(world, spare.endpoint.host, "> Take", count) as struck:
                await struck.wait()
                await world.crash(victim)
            after = await goes_on(world, 1, victim)
            assert training(after)[0].route[held.follows].peer == spare.peer

    run_virtual(scenario(), debug=False)


def test_of_two_spares_one_takes_the_one_hole_and_the_other_follows_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "model.stages=1", "plan.max_pipelines=1") as world:
            await world.start("head", "client")
            for host in ("alice", "bob", "carol"):
                await world.start(host, "expert", join="head")
            before = await world.until("head", lambda s: training(s) and steps(s) > 20 and len(followers(s)) == 2)
            victim = seat_of(before, 0)[0].endpoint.host
            await world.crash(victim)
            after = await goes_on(world, 1, victim)
            assert len([expert for _, expert in after.experts() if expert.seated]) == 1
            await world.until("head", lambda s: len(followers(s)) == 1)
            # The next hole is the other's.
            second = seat_of(after, 0)[0].endpoint.host
            await world.crash(second)
            await goes_on(world, 1, second)

    run_virtual(scenario(), debug=False)
