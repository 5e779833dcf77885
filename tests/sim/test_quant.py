"""A swarm that trains quantised: siblings agree on the steps, and who comes later goes on with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distqat.model.quant.quantizers import LearnedInputs
from distqat.model.stage import Stage
from tests.sim.swarm import World, open_world, steps, training
from tests.sim.test_swarm import books, expert_digests
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

QUANT = (
    "quant.method=lsq+",
    "quant.weights={bits: 4, per: channel}",
    "quant.activations={bits: 4}",
    "quant.rules=[{match: 'head*', exclude: true}]",
    "model.options={hidden: 48, depth: 3}",
    "train.epochs=1",
)


def stage_of(world: World, host: str) -> Stage:
    expert = world.peers[host].roster.get("expert")
    stage: Stage = expert.seat.stage  # type: ignore[attr-defined]
    return stage


def test_siblings_and_joiners_agree_on_steps(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *QUANT) as world:
            await world.start("head", "client")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: training(s) and steps(s) > 5)
            for host in ("carol", "dave"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: len(training(s)) == 2)
            status = await world.until("head", lambda s: books(s).finished, 300)
            assert (books(status).lost, books(status).doubled) == (0, 0)
            assert all(len(digests) == 1 for digests in expert_digests(status).values())
            assert len({(e.stage, e.digest) for _, e in status.experts()}) == 2
            for host in ("alice", "bob", "carol", "dave"):
                stage = stage_of(world, host)
                inputs = [module for module in stage.blocks.modules() if isinstance(module, LearnedInputs)]
                assert inputs
                for quantizer in inputs:
                    fresh = LearnedInputs(quantizer.grid, quantizer.channels, has_offset=True)
                    assert float(quantizer.initialised) > 0
                    assert float(quantizer.step.detach()) > 0
                    assert not torch.equal(quantizer.step, fresh.step)
            # One image in ten is guessed right.
            assert all(line.evaluation > 0.3 for line in status.pipelines())

    run_virtual(scenario(), debug=False)
