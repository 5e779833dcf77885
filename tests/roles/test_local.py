"""The baseline: one process, the run's own data order; accumulation over microbatches equals one big batch."""

from __future__ import annotations

import torch

from distqat.config import load
from distqat.data.client import Batch
from distqat.data.sampler import Sampler
from distqat.data.sources import open_source
from distqat.data.tasks import find_task
from distqat.model.build import build_whole
from distqat.roles.local import train_locally, train_step
from tests.support import run

SETTINGS = ["model.name=mlp", "daemon.threads=1", "optimizer.name=sgd", "optimizer.learning_rate=0.05"]


def test_microbatches_equal_one_big_batch() -> None:
    settings = load(overrides=SETTINGS)
    config = settings.run_config()
    source = open_source(config.data)
    sampler = Sampler(len(source.train), config.run.seed)
    stages = [build_whole(config, source.shape, find_task(source.task)) for _ in range(2)]
    for step in range(5):
        tensors = source.train.batch(sampler.indices(step * 32, step * 32 + 32))
        batch = Batch(step + 1, step * 32, step * 32 + 32, tensors)
        losses = [train_step(stage, batch, count) for stage, count in zip(stages, (1, 4), strict=True)]
        assert abs(losses[0] - losses[1]) < 1e-5
    whole, pieces = (stage.flatten() for stage in stages)
    assert torch.allclose(whole, pieces, atol=1e-6)


def test_the_whole_budget_is_trained_and_something_is_learned() -> None:
    result = run(train_locally(load(overrides=[*SETTINGS, "train.epochs=3"])), timeout=60)
    assert result.metric == "accuracy"
    assert result.value > 0.8
    assert result.steps == -(-3 * 1438 // 32)
    assert result.samples_per_second > 0
