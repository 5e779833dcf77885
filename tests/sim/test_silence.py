"""A host that is stopped and keeps its connections: noticed within the lease, and nobody waits for it any longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distqat.errors import UnreachableError
from distqat.roles.remote import Remote
from tests.sim.swarm import World, open_world, peer_of, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

LEASE = 3.0


async def start(world: World, **stages: int) -> None:
    """A client with its trainer, and experts of these stages."""
    await world.start("head", "client")
    for host, stage in stages.items():
        await world.start(host, "expert", join="head", stage=stage)


def test_a_stopped_expert_is_replaced_within_the_lease(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, f"lease.min={LEASE}") as world:
            await start(world, first=0, alice=1, bob=1)
            before = await world.until(
                "head", lambda s: training(s) and steps(s) > 20 and all(e.ready for _, e in s.experts())
            )
            (line,) = training(before)
            victim = line.route[1]
            world.freeze(victim.endpoint.host)
            loop = asyncio.get_running_loop()
            began = loop.time()
            after = await world.until(
                "first",
                lambda s: (
                    any(seat.endpoint.host == "first" for seat in s.pipelines()[0].route)
                    and victim not in s.pipelines()[0].route
                    and training(s)
                ),
                pause=0.02,
            )
            # Noticed, planned anew, and open over the other expert.
            assert loop.time() - began < LEASE + 0.5
            await world.until("first", lambda s: steps(s) > steps(after))
            run = peer_of(await world.status("first"), "head").role("client")
            assert run is not None
            assert run.run is not None
            assert [loss.peer for loss in run.run.losses] == [victim.peer]
            # It comes back, and is told of as a live one.
            world.thaw(victim.endpoint.host)
            await world.until("head", lambda s: len([e for _, e in s.experts() if e.ready]) == 3)

    run_virtual(scenario(), debug=False)


def test_whoever_waits_for_a_lost_peer_is_told_before_the_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, f"lease.min={LEASE}") as world:
            await start(world, first=0, alice=1)
            before = await world.until("head", lambda s: training(s) and steps(s) > 20)
            victim = training(before)[0].route[1]
            patient = Remote(world.peers["first"].context.transport, victim.endpoint, seconds=60.0)
            world.freeze(victim.endpoint.host)
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(UnreachableError, match="it is lost"):
                await patient.status()
            assert loop.time() - began < LEASE + 0.5
            assert victim.peer in world.peers["first"].context.directory.snapshot().lost

    run_virtual(scenario(), debug=False)
