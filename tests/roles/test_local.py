"""The baseline: one process, the run's own data order; accumulation over microbatches equals one big batch."""

from __future__ import annotations

import pytest
import torch

from distqat.config import RunConfig, load
from distqat.data.client import Batch
from distqat.data.sampler import Sampler, budget
from distqat.data.sources import Source, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.agreement import LossScale, decide, first_scale
from distqat.model.build import build_stage, build_whole
from distqat.model.rates import warmup_fraction
from distqat.model.terms import Terms
from distqat.roles.local import Alone, train_locally
from tests.support import run

SETTINGS = ["model.name=mlp", "daemon.threads=1", "optimizer.name=sgd", "optimizer.learning_rate=0.05"]


def alone(config: RunConfig, source: Source) -> Alone:
    positions = budget(config.train.epochs, len(source.train))
    stage = build_whole(config, source.shape, find_task(source.task))
    return Alone(config, stage, positions)


def batches(config: RunConfig, source: Source, number: int) -> list[Batch]:
    sampler, size = Sampler(len(source.train), config.run.seed), config.data.batch
    spans = [(step * size, step * size + size) for step in range(number)]
    return [Batch(begin, begin, end, source.train.batch(sampler.indices(begin, end))) for begin, end in spans]


def test_microbatches_equal_one_big_batch() -> None:
    configs = [load(overrides=[*SETTINGS, f"data.microbatches={number}"]).run_config() for number in (1, 4)]
    source = open_source(configs[0])
    pair = [alone(config, source) for config in configs]
    for batch in batches(configs[0], source, 5):
        losses = [own.step(batch) for own in pair]
        assert abs(losses[0] - losses[1]) < 1e-5
    whole, pieces = (own.stage.flatten() for own in pair)
    assert torch.allclose(whole, pieces, atol=1e-6)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["optimizer.clip_norm=0.5", "optimizer.schedule=cosine", "optimizer.warmup_steps=3"],
        ["optimizer.clip_norm=0.5", "train.precision=fp16"],
        ["train.precision=bf16"],
    ],
)
def test_a_pipeline_on_the_same_terms_ends_at_the_same_bits(extra: list[str]) -> None:
    """Two stages, chained by hand, that are told what `decide` says."""
    config = load(overrides=[*SETTINGS, "train.epochs=0.2", *extra]).run_config()
    source = open_source(config)
    own, positions = alone(config, source), budget(config.train.epochs, len(source.train))
    task, shape = find_task(source.task), source.shape
    first, last = (build_stage(config, shape, index, task) for index in range(2))
    warmup = warmup_fraction(config.optimizer, config.data.batch, positions)
    scale = first_scale(config.train.precision)
    if config.train.precision == "fp16":
        own.scale = scale = LossScale(2.0**24)
    for step, batch in enumerate(batches(config, source, 8), 1):
        own.step(batch)
        inputs, labels = (torch.from_numpy(batch.tensors[name]).chunk(4) for name in ("inputs", "labels"))
        last.loss_scale = scale.value
        for index in range(4):
            microbatch = MicrobatchId(step, index)
            hidden = first.forward(microbatch, inputs[index])
            result = last.loss(microbatch, hidden, {"labels": labels[index]}, batch.samples)
            assert result.gradient is not None
            first.backward(microbatch, result.gradient)
        squares = first.square_norms(step) + last.square_norms(step)
        verdict = decide(squares, config.optimizer, config.train.precision, scale)
        for stage in (first, last):
            stage.commit(step, Terms(batch.begin / positions, verdict.factor, warmup))
        scale = verdict.scale
        assert own.scale == scale
    assert torch.equal(torch.cat([first.flatten(), last.flatten()]), own.stage.flatten())
    assert repr(own) == f"<Alone {own.stage!r}, loss scale {scale.value:g}>"


def test_the_schedule_follows_the_samples() -> None:
    """With a warm-up the first steps move less; the clock is where the batch lies, not how many there were."""
    moved = {}
    for name, extra, at in (("none", [], 0), ("begun", ["optimizer.warmup_steps=10"], 0), ("later", [], 9)):
        config = load(overrides=[*SETTINGS, *extra, *(["optimizer.warmup_steps=10"] if at else [])]).run_config()
        source = open_source(config)
        own = alone(config, source)
        before = own.stage.flatten()
        (batch,) = batches(config, source, 1)
        begin = at * config.data.batch
        own.step(Batch(1, begin, begin + batch.samples, batch.tensors))
        moved[name] = float((own.stage.flatten() - before).norm())
    assert moved["begun"] == pytest.approx(moved["none"] / 10, rel=1e-3)
    assert moved["later"] == pytest.approx(moved["none"], rel=1e-3)


def test_the_whole_budget_is_trained_and_something_is_learned() -> None:
    result = run(train_locally(load(overrides=[*SETTINGS, "train.epochs=3"])), timeout=60)
    assert result.metric == "accuracy"
    assert result.value > 0.8
    assert result.steps == -(-3 * 1438 // 32)
    assert result.samples_per_second > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_as_much(precision: str) -> None:
    settings = load(overrides=[*SETTINGS, "train.epochs=1", f"train.precision={precision}", "optimizer.clip_norm=1"])
    assert run(train_locally(settings), timeout=60).value > 0.6
