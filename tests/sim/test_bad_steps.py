"""Steps that fail in the same way whoever tries: one bad batch is skipped, and a run of which every step fails ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distqat.errors import TensorError
from distqat.model.stage import Stage
from distqat.roles.status import RunStatus, SwarmStatus
from tests.sim.swarm import World, open_world, peer_of, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

BATCH = 16


def books(status: SwarmStatus) -> RunStatus:
    run = status.run()
    assert run is not None
    return run


async def start(world: World) -> None:
    await world.start("head", "client")
    for host in ("alice", "bob"):
        await world.start(host, "expert", join="head")


def spoil(monkeypatch: pytest.MonkeyPatch, smallest: int) -> None:
    """Let the last stage take no batch of fewer samples, as a batch norm takes none of one."""
    healthy = Stage.loss

    def loss(stage: Stage, microbatch: Any, hidden: Any, targets: Any, samples: int, train: bool = True) -> Any:
        if train and samples < smallest:
            raise TensorError(f"a batch of {samples} samples; at least {smallest} are needed")
        return healthy(stage, microbatch, hidden, targets, samples, train)

    monkeypatch.setattr(Stage, "loss", loss)


def test_a_batch_that_no_stage_takes_is_skipped_and_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, BATCH)

    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=1", "data.adaptive=false") as world:
            await start(world)
            done = await world.until("head", lambda s: books(s).finished, 300, pause=1.0)
            run = books(done)
            assert run.skipped == run.budget % BATCH > 0
            assert (run.committed, run.lost, run.doubled) == (run.budget - run.skipped, 0, 0)

    run_virtual(scenario(), debug=False)


def test_a_run_of_which_every_step_fails_says_so_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 10 * BATCH)

    async def scenario() -> None:
        async with open_world(tmp_path, "data.adaptive=false") as world:
            await start(world)
            failed = await world.until("head", lambda s: peer_of(s, "head").role("client").phase == "failed")  # type: ignore[union-attr]
            client = peer_of(failed, "head").role("client")
            assert client is not None
            assert "every step fails" in client.reason
            assert "TensorError at stage 1: a batch of 16 samples; at least 160 are needed" in client.reason
            await world.until("head", lambda s: not s.pipelines() and not training(s))
            assert (books(failed).committed, books(failed).lost) == (0, 0)

    run_virtual(scenario(), debug=False)
