"""Client and trainer of one daemon need no message to each other: a route is mended although none arrives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.sim.swarm import open_world, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]


def test_the_trainer_hears_of_its_new_route_without_a_message(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client")
            for host, stage in (("first", 0), ("alice", 1), ("bob", 1)):
                await world.start(host, "expert", join="head", stage=stage)
            before = await world.until(
                "head", lambda s: training(s) and steps(s) > 20 and all(e.ready for _, e in s.experts())
            )
            (line,) = training(before)
            held_up = []

            async def hold_up(what: str) -> None:
                if what in ("> Drive", "> Lost"):
                    held_up.append(what)
                    await asyncio.Event().wait()

            world.gate("head").hook = hold_up
            loop = asyncio.get_running_loop()
            began = loop.time()
            await world.crash(line.route[1].endpoint.host)
            mended = await world.until(
                "first", lambda s: training(s) and training(s)[0].epoch > line.epoch and steps(s) > line.step + 2, 20.0
            )
            assert loop.time() - began < 1.5
            assert training(mended)[0].route[1] != line.route[1]
            # Only others are told of the loss by a message.
            assert "> Drive" not in held_up

    run_virtual(scenario(), debug=False)
