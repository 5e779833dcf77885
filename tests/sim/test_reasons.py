"""Whatever waits says for what: nothing that lasts is without its reason, and the typical ones are right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from distqat.roles.status import SwarmStatus
from tests.sim.swarm import World, open_world, peer_of, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]


def shown(status: SwarmStatus) -> dict[str, str]:
    """Every reason that `distqatctl status` shows, by where it stands: host, `host role`, or pipeline."""
    reasons = {peer.endpoint.host: peer.reason for peer in status.peers}
    reasons |= {f"{p.endpoint.host} {role.role}": role.reason for p in status.peers for role in p.roles}
    return reasons | {line.pipeline: line.reason for line in status.pipelines()}


async def says(world: World, host: str, **wanted: str) -> SwarmStatus:
    """Until these places (`head_client`: the client on head) show these words; no look may find an empty reason."""
    places = {place.replace("_", " "): words for place, words in wanted.items()}

    def look(status: SwarmStatus) -> bool:
        reasons = shown(status)
        assert all(reasons.values()), reasons
        return all(words in reasons.get(place, "") for place, words in places.items())

    return await world.until(host, look)


async def until(world: World, host: str, condition: Callable[[SwarmStatus], object]) -> SwarmStatus:
    """As `World.until`; no look may find an empty reason."""

    def look(status: SwarmStatus) -> object:
        assert all(shown(status).values()), shown(status)
        return condition(status)

    return await world.until(host, look)


def test_every_state_on_the_way_to_training_says_what_it_waits_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("alice", "expert")
            await says(world, "alice", alice="waiting: alone", alice_expert="waiting: no run is known yet")
            await world.start("watch", "monitor", "trainer", join="alice")
            await says(
                world,
                "alice",
                alice="peers knows a run yet; one needs the role client",
                watch_monitor="waiting: no run is known yet",
                watch_trainer="waiting: no run is known yet",
            )
            await world.start("head", "client", join="alice")
            await says(
                world,
                "head",
                alice="working for run sim@",
                head_client="waiting: stage 1 of 2 has no expert",
                alice_expert="waiting: no route through mlp/0 yet",
                watch_trainer="waiting: no pipeline to drive",
                watch_monitor="watching 3 peers",
            )
            await world.start("bob", "expert", join="alice")
            status = await until(world, "head", lambda s: training(s) and steps(s) > 10)
            (line,) = training(status)
            assert line.reason == "training"
            await says(world, "head", watch_trainer="driving 1 pipelines", watch_monitor="watching 4 peers")
            await says(world, "head", alice_expert=f"training mlp/0 in pipeline {line.pipeline}")
            await says(world, "head", head_client="1 pipeline; no further one: ")
            await world.start("second", "client", join="head")
            await says(world, "second", second_client=f"standing by: {peer_of(status, 'head').peer[:8]} plans this run")

    run_virtual(scenario(), debug=False)


def test_what_is_lost_or_leaves_is_told_by_those_who_wait_for_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client", "monitor")
            for host, stage in (("alice", 0), ("bob", 1)):
                await world.start(host, "expert", join="head", stage=stage)
            status = await until(world, "head", lambda s: training(s) and steps(s) > 10)
            run = status.run()
            assert run is not None
            assert {lease.peer for lease in run.leases} >= {peer_of(status, host).peer for host in ("alice", "bob")}
            assert all(lease.age <= lease.seconds for lease in run.leases)
            world.network.partition({"bob"}, {"head", "alice"})
            # A cut link says nothing: the monitor has it from the missing answer, the client from the lease.
            await says(world, "head", head_monitor=f"do not answer: {peer_of(status, 'bob').peer[:8]}")
            lost = await says(world, "head", head_client="waiting: stage 1 of 2 has no expert")
            told = lost.run()
            assert told is not None
            assert [(loss.peer, bool(loss.how)) for loss in told.losses] == [(peer_of(status, "bob").peer, True)]
            world.network.heal()
            await until(world, "head", lambda s: training(s))
            async with asyncio.TaskGroup() as group:
                group.create_task(world.stop("alice"))
                await says(world, "alice", alice="leaving: giving the roles back")
            await says(world, "head", head_client="waiting: stage 0 of 2 has no expert")

    run_virtual(scenario(), debug=False)


def test_a_daemon_with_a_run_and_a_wrong_address_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client", join="nowhere")
            await says(world, "head", head="alone: nobody answers: nowhere:7000: ")

    run_virtual(scenario(), debug=False)
