"""A trainer that is cut off from the client and not from its experts: no sample is trained on twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from distqat.errors import RefusedError
from distqat.ids import PipelineId, StepRef
from distqat.model.agreement import Verdict
from distqat.pipeline.service import PipelineService
from distqat.pipeline.standing import LastStep
from distqat.roles.seat import Seat as HeldSeat
from distqat.roles.status import RunStatus, SwarmStatus
from tests.sim.swarm import World, open_world, peer_of, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]


class Learned:
    """The samples that each stage has learned from, all its experts together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples: Counter[int] = Counter()
        hear = HeldSeat.committed

        async def committed(seat: HeldSeat, at: StepRef, samples: int) -> None:
            self.samples[int(seat.stage.index)] += samples
            await hear(seat, at, samples)

        monkeypatch.setattr(HeldSeat, "committed", committed)


def books(status: SwarmStatus) -> RunStatus:
    run = status.run()
    assert run is not None
    return run


async def start(world: World) -> SwarmStatus:
    """A client, a trainer elsewhere, and two experts that train."""
    await world.start("helper", "trainer")
    await world.start("head", "client", join="helper")
    for host in ("alice", "bob"):
        await world.start(host, "expert", join="head")
    return await world.until("head", lambda s: training(s) and steps(s) > 10)


def test_a_trainer_that_is_cut_off_from_the_client_is_fenced_and_learns_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = Learned(monkeypatch)

    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=2", "lease.min=2") as world:
            before = await start(world)
            (name,) = (line.pipeline for line in before.pipelines())
            world.network.partition({"head"}, {"helper"})
            # Its pipeline is over, and another trainer goes on with its experts.
            apart = await world.until("head", lambda s: training(s) and training(s)[0].pipeline != name)
            assert {loss.peer for loss in books(apart).losses} == {peer_of(before, "helper").peer}
            world.network.heal()
            await world.until("helper", lambda s: not [line for line in s.pipelines() if line.pipeline == name])
            done = await world.until("head", lambda s: books(s).finished, 300, pause=1.0)
            run = books(done)
            assert (run.committed, run.lost, run.doubled) == (run.budget, 0, 0)
            # What the stages have learned from, and not only what the books say.
            assert learned.samples == {0: run.budget, 1: run.budget}

    run_virtual(scenario(), debug=False)


def test_a_trainer_that_dies_takes_no_sample_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = Learned(monkeypatch)

    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=2") as world:
            before = await start(world)
            await world.crash("helper")
            began = asyncio.get_running_loop().time()
            after = await world.until("head", lambda s: training(s) and books(s).committed > books(before).committed)
            assert asyncio.get_running_loop().time() - began < 10.0
            assert [line.pipeline for line in after.pipelines()] != [line.pipeline for line in before.pipelines()]
            await world.start("helper", "trainer", join="alice")
            done = await world.until("head", lambda s: books(s).finished, 300, pause=1.0)
            run = books(done)
            assert (run.committed, run.lost, run.doubled) == (run.budget, 0, 0)
            assert learned.samples == {0: run.budget, 1: run.budget}

    run_virtual(scenario(), debug=False)


def test_a_trainer_that_is_back_before_all_experts_have_answered_drives_the_pipeline_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = Learned(monkeypatch)
    fence, is_slow, refused = PipelineService.fence, True, asyncio.Event()

    async def slow(service: PipelineService, pipeline: PipelineId, step: int, verdict: Verdict) -> LastStep:
        last = await fence(service, pipeline, step, verdict)
        if is_slow and service._host.stage.index == 1:
            refused.set()
            raise RefusedError("the route is still ending here")
        return last

    monkeypatch.setattr(PipelineService, "fence", slow)

    async def scenario() -> None:
        nonlocal is_slow
        async with open_world(tmp_path, "train.epochs=2", "lease.min=2") as world:
            before = await start(world)
            (name,) = (line.pipeline for line in before.pipelines())
            helper = peer_of(before, "helper").peer
            world.network.partition({"head"}, {"helper"})
            await refused.wait()
            world.network.heal()
            await world.until("head", lambda s: helper in {lease.peer for lease in books(s).leases})
            await asyncio.sleep(5.0)
            # It drives nothing, and nobody gets its samples yet.
            now = await world.status("head")
            assert [line.pipeline for line in books(now).pipelines] == [name]
            assert books(now).open
            is_slow = False
            await world.until("head", lambda s: training(s) and training(s)[0].pipeline != name, 20.0)
            done = await world.until("head", lambda s: books(s).finished, 300, pause=1.0)
            run = books(done)
            assert (run.committed, run.lost, run.doubled) == (run.budget, 0, 0)
            assert learned.samples == {0: run.budget, 1: run.budget}

    run_virtual(scenario(), debug=False)
