"""Replicas in one process learn what the naive loop learns; rounds in other codecs stay near it and cost less."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.arms import Arm
from bench.learner import Learner
from bench.replicas import evaluate
from bench.results import Result
from distqat.data.sampler import Sampler
from distqat.data.sources import ArraySplit, Source, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.build import build_whole
from distqat.roles.trials import to_tensors
from distqat.sections import SyncSection

STEPS, WARMUP = 12, 2
SYNC = SyncSection(
    codec="none", warmup_steps=WARMUP, ramp_rounds=0, inner_steps=3, outer_learning_rate=0.7, outer_momentum=0.9
)


@pytest.fixture(scope="module")
def source() -> Source:
    """With little that is held out, so that little time goes into looking at it."""
    source = open_source(Arm("any").config(1))
    return replace(source, held_out=ArraySplit(source.held_out.batch(np.arange(64))))


@pytest.fixture(scope="module")
def exact(source: Source) -> Result:
    return learn(source, SYNC)


def learn(source: Source, sync: SyncSection | None, replicas: int = 2) -> Result:
    return asyncio.run(Learner(source).learn(Arm("any", sync, replicas), 1, STEPS))


def changed(**settings: object) -> SyncSection:
    return SyncSection.model_validate({**SYNC.model_dump(), **settings})


def test_in_fp32_it_is_the_naive_loop(source: Source, exact: Result) -> None:
    loss, rounds = naive(source, 2)
    assert exact.loss == pytest.approx(loss, rel=1e-6)
    assert exact.rounds == rounds


def naive(source: Source, replicas: int) -> tuple[float, int]:
    """Loss of the outer parameters, and the number of rounds."""
    config = Arm("any", SYNC, replicas).config(1)
    stages = [build_whole(config, source.shape, find_task("llm")) for _ in range(replicas)]
    sampler, size = Sampler(len(source.train), 1), 32 // replicas
    anchor, since, rounds = stages[0].flatten(), 0, 0
    momentum = torch.zeros_like(anchor)
    for step in range(1, STEPS + 1):
        since += 1
        for place, stage in enumerate(stages):
            begin = (step - 1) * 32 + place * size
            batch = to_tensors(source.train.batch(sampler.indices(begin, begin + size)))
            stage.loss(MicrobatchId(step, 0), batch.pop("inputs"), batch, size)
            stage.commit(step)
        if since < (1 if rounds < WARMUP else 3) and step != STEPS:
            continue
        mean = torch.stack([stage.flatten() for stage in stages]).mean(0)
        if rounds < WARMUP:
            anchor = mean
        else:
            momentum = 0.9 * momentum + (anchor - mean)
            anchor = anchor - 0.7 * ((anchor - mean) + 0.9 * momentum)
        for stage in stages:
            stage.scatter([0], anchor)
        since, rounds = 0, rounds + 1
    return evaluate(stages[0], source), rounds


@pytest.mark.parametrize("settings", [{"fragments": 2, "overlap": 1}, {"overlap": 3, "eager": True}])
def test_beside_steps_the_same_rounds_come_to_something_else(
    source: Source, exact: Result, settings: dict[str, object]
) -> None:
    beside = learn(source, changed(**settings))
    assert beside.loss != exact.loss
    assert beside.loss == pytest.approx(exact.loss, rel=0.05)
    assert beside.rounds >= exact.rounds


def test_coarser_codecs_change_little_and_send_less(source: Source, exact: Result) -> None:
    int8, int4, int2 = (learn(source, changed(codec=codec)) for codec in ("int8", "int4", "int2"))
    for found, share in ((int8, 1 / 3.9), (int4, 1 / 5)):
        assert found.loss != exact.loss
        assert found.loss == pytest.approx(exact.loss, rel=0.02)
        assert found.bytes < share * exact.bytes
    # The warm-up of both travels as int8.
    assert int2.bytes < int4.bytes < int8.bytes


def test_bytes_are_those_of_an_all_reduce_in_two_shots(exact: Result) -> None:
    # Half of the parameters out and in, then half of the average out and in, 4 bytes each.
    least = exact.rounds * 2 * exact.parameters * 4
    assert least <= exact.bytes < 1.02 * least


def test_one_process_is_the_naive_loop_too_and_a_floor_sees_less(source: Source) -> None:
    alone = learn(source, None, replicas=1)
    assert (alone.rounds, alone.bytes) == (0, 0.0)
    floor = asyncio.run(Learner(source).learn(Arm("floor", share=4), 1, STEPS))
    assert floor.loss > alone.loss


def test_seeds_differ_and_repeat(source: Source) -> None:
    learner = Learner(source)
    first, second, again = (asyncio.run(learner.learn(Arm("any", SYNC, 2), seed, 4)) for seed in (1, 2, 1))
    assert first.loss == again.loss != second.loss
