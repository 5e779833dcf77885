"""The learning of a curve, without its processes: with codec none it is that of one process."""

from __future__ import annotations

import numpy as np
import pytest

from bench import curve
from bench.curve import CONFIG, Learner, Length
from distqat.config import RunConfig, load
from distqat.data.sampler import Sampler
from distqat.data.sources import Source, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.build import build_whole
from distqat.pipeline.split import split
from distqat.roles.trials import to_tensors
from tests.support import run

SHORT = Length((1, 3), 8)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    settings = load(CONFIG, ["data.batch=8"])
    options = {**settings.model.options, "width": 16, "layers": 2, "heads": 2}
    model = settings.model.model_copy(update={"options": options})
    return settings.run_config().model_copy(update={"model": model})


@pytest.fixture(scope="module")
def source(config: RunConfig) -> Source:
    return open_source(config)


def test_without_a_codec_it_is_one_process(config: RunConfig, source: Source) -> None:
    found = run(Learner(config, source, "none").learn(2, SHORT))
    assert found == _alone(config, source, 2)


def test_a_codec_changes_little_and_something(config: RunConfig, source: Source) -> None:
    exact, rounded = (run(Learner(config, source, codec).learn(2, SHORT)) for codec in ("none", "int8"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=1e-2)


def test_seeds_differ(config: RunConfig, source: Source) -> None:
    learner = Learner(config, source, "none")
    assert run(learner.learn(1, SHORT)) != run(learner.learn(2, SHORT))


def _alone(config: RunConfig, source: Source, seed: int) -> list[float]:
    """One process, the plain way."""
    config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
    stage = build_whole(config, source.shape, find_task("llm"))
    sampler, size, losses = Sampler(len(source.train), seed), config.data.batch, []
    for step in range(1, SHORT.looks[-1] + 1):
        batch = to_tensors(source.train.batch(sampler.indices((step - 1) * size, step * size)))
        for index, part in enumerate(split(size, config.data.microbatches)):
            piece = {name: tensor[part.start : part.stop] for name, tensor in batch.items()}
            stage.loss(MicrobatchId(step, index), piece.pop("inputs"), piece, size)
        stage.commit(step)
        if step in SHORT.looks:
            targets = to_tensors(source.held_out.batch(np.arange(SHORT.windows)))
            result = stage.loss(MicrobatchId(step + 1, 0), targets.pop("inputs"), targets, SHORT.windows, train=False)
            losses.append(result.sums["loss"] / SHORT.windows)
    return losses


def test_the_goals_stand_at_the_end() -> None:
    lines = list(curve.lines([([3.0, 2.02], [3.0, 2.0]), ([3.1, 2.0], [3.0, 2.1]), ([2.9, 2.1], [2.8, 2.2])], SHORT))
    assert [line.goal for line in lines] == [None, "ratio >= 0.99", "value <= 1"]
    assert [line.value for line in lines] == [3.0, 2.02, pytest.approx(100 * (1 - 2.0 / 2.1))]
    assert [line.ok for line in lines] == [True, True, False]
