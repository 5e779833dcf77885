"""The client's machine is lost for good while trainers live on: old books beside checkpoints, and no sample twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from distqat.roles.supply import SHOWN_BOOKED
from tests.sim.bereaved import Learned
from tests.sim.swarm import open_world, steps, training
from tests.sim.test_checkpoints import EXACT, books, newest
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(600)]


def test_books_that_are_many_steps_behind_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = Learned(monkeypatch)

    async def scenario() -> None:
        async with open_world(tmp_path, *EXACT, "checkpoint.steps=100", "train.epochs=2.4") as world:
            await world.start("helper", "trainer")
            await world.start("head", "client", join="helper")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="helper")
            status = await world.until("helper", lambda s: newest(s) > 0, 120)
            behind = steps(status)
            status = await world.until("helper", lambda s: steps(s) > behind + SHOWN_BOOKED + 10, 120)
            name = training(status)[0].pipeline
            await world.crash("head")
            await world.start("other", "client", join="helper")
            status = await world.until("other", lambda s: s.run() is not None and books(s).finished, 600, pause=1.0)
            run = books(status)
            assert (run.committed, run.lost, run.doubled, run.open) == (run.budget, 0, 0, 0)
            # The same pipeline, on samples each of which it has learned from once.
            assert [line.pipeline for line in status.pipelines()] == [name]
            assert learned.samples == {run.budget}

    run_virtual(scenario(), debug=False)
