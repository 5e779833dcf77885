"""Monitor, client, trainer, round leader and bootstrap peer are killed, one after the other: none is a single point.

Training goes on after each, each returns and finds its place; no sample is lost, none is trained on twice, and what
siblings have committed is equal.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import pytest

from distqat.discovery import keys
from distqat.discovery.directory import Directory
from tests.sim.bereaved import CLIENT, ENTRY, LEADER, MONITOR, TRAINER, Bereaved, Learned
from tests.sim.swarm import open_world
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(300)]


def bereave_all(folder: Path, seed: int, stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All five in an order that follows from the seed."""
    # What is news is pushed; to look it up is most of what such a small swarm does otherwise.
    monkeypatch.setattr(keys, "EXPERT_SHARDS", 1)
    monkeypatch.setattr(Directory, "open", partial(Directory.open, interval=2.0))
    learned = Learned(monkeypatch)
    draw = Random(seed)
    order = draw.sample([MONITOR, CLIENT, TRAINER, LEADER, ENTRY], 5)

    async def scenario() -> None:
        settings = (f"model.stages={stages}", "plan.max_pipelines=2", "train.epochs=2.4", "plan.copy_seconds=1")
        async with open_world(folder, *settings) as world:
            swarm = Bereaved(world, folder, seed, stages, has_deputy=draw.random() < 0.5)
            await swarm.start()
            for whom in order:
                await swarm.bereave(whom)
            run = await swarm.finish()
            assert (run.committed, run.lost, run.doubled, run.open) == (run.budget, 0, 0, 0)
            assert learned.samples == {run.budget}
            assert len(swarm.digests) > 10
            assert all(len(found) == 1 for found in swarm.digests.values())

    run_virtual(scenario(), debug=False)


@pytest.mark.parametrize("seed", range(1))
def test_each_is_lost_once(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bereave_all(tmp_path, seed, 1, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 200))
def test_soak_of_losses(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bereave_all(tmp_path, seed, 1 + seed % 2, monkeypatch)
