"""A run that has committed a round is never begun anew: not when all its experts are lost, not when all restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distqat.roles.status import SwarmStatus
from tests.sim.swarm import World, open_world, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

WHY = "the run has committed rounds, and nobody holds mlp/"


async def started(world: World) -> SwarmStatus:
    """A run that has committed rounds in both of its stages."""
    await world.start("head", "client")
    await world.start("watch", "monitor", join="head")
    for host in ("alice", "bob"):
        await world.start(host, "expert", join="head")
    status = await world.until("head", lambda s: training(s) and all(e.round > 2 for _, e in s.experts()))
    # For the news to be everywhere.
    await asyncio.sleep(2.0)
    return status


def waiting(status: SwarmStatus) -> int:
    """Experts that say why they wait."""
    return sum(WHY in role.reason for peer in status.peers for role in peer.roles)


def test_any_daemon_of_the_run_remembers_that_it_has_committed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await started(world)
            for host in ("alice", "bob", "head"):
                await world.crash(host)
            # Every record of theirs has died; only a monitor is left of the run.
            await asyncio.sleep(60.0)
            await world.start("second", "client", join="watch")
            for host in ("carol", "dave"):
                await world.start(host, "expert", join="watch")
            await world.until("second", lambda s: waiting(s) == 2, pause=1.0)
            await asyncio.sleep(30.0)
            after = await world.status("second")
            assert waiting(after) == 2
            assert not training(after)

    run_virtual(scenario(), debug=False)


def test_after_a_restart_of_all_the_run_waits_and_another_name_begins_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        hosts = ("head", "watch", "alice", "bob")
        async with open_world(tmp_path, "checkpoint.steps=0") as world:
            await started(world)
            for host in hosts:
                await world.crash(host)
            await asyncio.sleep(60.0)
            await world.start("head", "client")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: waiting(s) == 2, pause=1.0)
            assert not training(await world.status("head"))
        async with open_world(tmp_path, "run.name=again") as world:
            await world.start("head", "client")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: training(s) and steps(s) > 10)

    run_virtual(scenario(), debug=False)
