"""Spares that follow a stage, and take it over: after a crash, and when its expert leaves in good order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distqat.events import Kind
from distqat.roles.remote import Remote
from distqat.roles.status import ExpertStatus, PeerStatus, SwarmStatus
from tests.sim.swarm import World, open_world, peer_of, steps, training
from tests.sim.test_swarm import books, expert_digests
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]


def followers(status: SwarmStatus) -> list[tuple[PeerStatus, ExpertStatus]]:
    """The spares that hold a stage warm."""
    return [(peer, expert) for peer, expert in status.experts() if expert.warm]


def seat_of(status: SwarmStatus, stage: int) -> tuple[PeerStatus, ExpertStatus]:
    """The first expert that has a seat of the stage."""
    return next((peer, expert) for peer, expert in status.experts() if expert.seated and expert.stage == stage)


def state_bytes(status: SwarmStatus, host: str) -> int:
    """Received by that daemon of committed state and of copies."""
    flows = {traffic.flow: traffic.received for traffic in peer_of(status, host).traffic}
    return flows.get("state", 0) + flows.get("copies", 0)


async def trained(world: World, hosts: tuple[str, ...], more: int = 10) -> SwarmStatus:
    """Start a client and experts; the swarm once it trains and its spares are warm."""
    await world.start("head", "client")
    for host in hosts:
        await world.start(host, "expert", join="head")
    spares = len(hosts) % 2
    return await world.until("head", lambda s: training(s) and steps(s) > more and len(followers(s)) == spares)


def test_a_warm_spare_takes_the_place_of_a_crashed_expert_and_moves_no_parameters(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "plan.copy_seconds=0") as world:
            before = await trained(world, ("alice", "bob", "spare"))
            ((spare, held),) = followers(before)
            assert held.follows is not None
            assert "follows stage" in spare.roles[0].reason
            host = spare.endpoint.host
            victim, _ = seat_of(before, held.follows)
            (line,) = training(before)
            loop, received = asyncio.get_running_loop(), state_bytes(before, host)
            began = loop.time()
            await world.crash(victim.endpoint.host)
            mended = await world.until(
                "head",
                lambda s: training(s) and training(s)[0].epoch > line.epoch and steps(s) > line.step + 2,
                pause=0.02,
            )
            assert loop.time() - began < 1.0
            # Averages of rounds that it took part in are no state.
            assert state_bytes(mended, host) == received
            assert [seat.peer for seat in training(mended)[0].route if seat.stage == held.follows] == [spare.peer]
            assert training(mended)[0].pipeline == line.pipeline
            assert (books(mended).lost, books(mended).doubled) == (0, 0)
            _, promoted = next((p, e) for p, e in mended.experts() if p.peer == spare.peer)
            # It decides alone: whoever committed the last round is gone for sure.
            later = await world.until(
                "head", lambda s: all(e.round > promoted.round + 1 for _, e in s.experts() if e.seated), 10.0
            )
            assert all(len(digests) == 1 for digests in expert_digests(later).values())

    run_virtual(scenario(), debug=False)


def test_a_spare_that_holds_another_stage_takes_a_place_as_soon_as_a_sibling_has_given_it_the_state(
    tmp_path: Path,
) -> None:
    """The client hears that it is ready with the answer to its order, and not at its next look."""

    async def scenario() -> None:
        async with open_world(tmp_path, "plan.max_pipelines=2") as world:
            await trained(world, ("alice", "bob", "carol", "dave", "spare"))
            before = await world.until(
                "head",
                lambda s: (
                    len(training(s)) == 2 and all(e.round > 2 for _, e in s.experts() if e.seated) and followers(s)
                ),
            )
            ((spare, held),) = followers(before)
            victim, lost = next((p, e) for p, e in before.experts() if e.seated and e.stage != held.follows)
            line = next(one for one in training(before) if one.pipeline == lost.pipeline)
            loop = asyncio.get_running_loop()
            began = loop.time()
            await world.crash(victim.endpoint.host)
            mended = await world.until(
                "head",
                lambda s: any(
                    one.pipeline == line.pipeline and one.epoch > line.epoch and one.step > line.step + 1
                    for one in training(s)
                ),
                pause=0.02,
            )
            # A look comes every half a second; the state, the route and the step take the rest.
            assert loop.time() - began < 0.5
            route = next(one.route for one in training(mended) if one.pipeline == line.pipeline)
            assert [seat.peer for seat in route if seat.stage == lost.stage] == [spare.peer]

    run_virtual(scenario(), debug=False)


def test_a_spare_goes_on_with_the_copy_that_it_took(tmp_path: Path) -> None:
    """What the lost expert has learned since the last round, but for the last moment, is not lost with it."""

    async def scenario() -> None:
        # Rounds are far apart, so a copy belongs to what is committed.
        async with open_world(tmp_path, "plan.copy_seconds=0.5", "sync.inner_steps=1000") as world:
            await trained(world, ("alice", "bob", "spare"))
            before = await world.until("head", lambda s: "copy of step" in str(followers(s)[0][0].roles))
            ((spare, held),) = followers(before)
            assert held.follows is not None
            victim, _ = seat_of(before, held.follows)
            await world.crash(victim.endpoint.host)
            mended = await world.until(
                "head",
                lambda s: training(s) and spare.peer in str(training(s)[0].route) and steps(s) > steps(before) + 5,
            )
            remote = Remote(world.network.transport("observer"), spare.endpoint, 20.0)
            told = [event.text for event in (await remote.events()).events if event.kind == Kind.STATE_OBTAINED]
            assert len(told) == 1
            assert "goes on from step" in told[0]
            assert (books(mended).lost, books(mended).doubled) == (0, 0)

    run_virtual(scenario(), debug=False)


async def curve(world: World, until: int) -> dict[int, float]:
    """The training loss of every step up to that one."""
    losses: dict[int, float] = {}
    while max(losses, default=0) < until:
        for line in (await world.status("head")).pipelines():
            losses |= {line.step - age: loss for age, loss in enumerate(reversed(line.losses))}
        await asyncio.sleep(0.02)
    return {step: loss for step, loss in losses.items() if step <= until}


def test_a_seat_that_is_handed_over_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """As if nobody had left: nothing is replayed, and every loss is the same."""
    last = 60

    async def undisturbed() -> dict[int, float]:
        async with open_world(tmp_path / "one", "data.adaptive=false") as world:
            await trained(world, ("alice", "bob"), 0)
            return await curve(world, last)

    async def drained() -> dict[int, float]:
        async with open_world(tmp_path / "two", "data.adaptive=false") as world:
            before = await trained(world, ("alice", "bob", "spare"), 0)
            ((spare, held),) = followers(before)
            assert held.follows is not None
            leaver, _ = seat_of(before, held.follows)
            async with asyncio.TaskGroup() as group:
                losses = group.create_task(curve(world, last))
                await world.stop(leaver.endpoint.host)
                after = await world.until(
                    "head", lambda s: training(s) and leaver.peer not in str(training(s)[0].route)
                )
                assert min(line.step for line in before.pipelines()) < last - 10
            assert [line.replayed for line in after.pipelines()] == [0]
            assert (books(after).lost, books(after).doubled) == (0, 0)
            assert training(after)[0].route[held.follows].peer == spare.peer
            return losses.result()

    assert run_virtual(undisturbed(), debug=False) == run_virtual(drained(), debug=False)
