"""Counts that follow speeds: the formula, its bounds, and that noise moves nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.discovery.records import Pace
from distqat.ids import PipelineId
from distqat.pipeline.split import split
from distqat.roles import batches
from distqat.roles.batches import COOLDOWN, ENOUGH, MOST, Bounds, Pacing, choose, fair_seconds, step_seconds
from distqat.sections import DataSection

DATA = DataSection(batch=64, microbatches=8)
PACES = st.lists(st.floats(0.001, 10.0), min_size=1, max_size=8)
BOUNDS = st.builds(Bounds, st.integers(1, 32), st.integers(1, 8))


def announced(paces: Sequence[float], counts: Sequence[int]) -> list[Pace]:
    """As others hear it."""
    return [Pace(PipelineId(f"p{i}"), *one) for i, one in enumerate(zip(paces, counts, strict=True))]


def settled(bounds: Bounds, paces: list[float], begin: Sequence[int] = (), rounds: int = 6) -> list[int]:
    """What every pipeline comes to, each for itself, when all choose at once."""
    counts = list(begin) or [bounds.usual] * len(paces)
    for _ in range(rounds):
        said = announced(paces, counts)
        counts = [
            choose(bounds, count, pace, [*said[:i], *said[i + 1 :]])
            for i, (count, pace) in enumerate(zip(counts, paces, strict=True))
        ]
    return counts


def idle(bounds: Bounds, paces: list[float], counts: list[int]) -> float:
    """Mean share of a round in which a pipeline waits for the slowest."""
    seconds = [step_seconds(pace, count, bounds.stages) for pace, count in zip(paces, counts, strict=True)]
    return 1 - mean(seconds) / max(seconds)


# Sizes.


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 600))
def test_a_batch_of_n_microbatches_is_split_into_n(batch: int, microbatches: int, count: int) -> None:
    data = DataSection(batch=max(batch, microbatches), microbatches=microbatches)
    samples = batches.samples_of(data, count)
    assert batches.microbatches_of(data, samples) == count
    assert len(split(samples, count)) == count
    assert batches.samples_of(data, microbatches) == data.batch


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5000))
def test_no_microbatch_is_larger_than_the_settings_say(batch: int, microbatches: int, samples: int) -> None:
    data = DataSection(batch=max(batch, microbatches), microbatches=microbatches)
    largest = -(-data.batch // data.microbatches)
    assert max(map(len, split(samples, batches.microbatches_of(data, samples)))) <= largest


# The common step.


@settings(deadline=None, max_examples=40)
@given(BOUNDS, PACES)
def test_the_mean_number_is_the_usual_one(bounds: Bounds, paces: list[float]) -> None:
    fair = fair_seconds(bounds, paces)
    assert mean(min(max(fair / pace - bounds.stages + 1, 1), bounds.most) for pace in paces) == pytest.approx(
        bounds.usual
    )


@settings(deadline=None, max_examples=40)
@given(BOUNDS, st.floats(0.001, 10.0), st.integers(1, 12))
def test_equal_pipelines_keep_the_usual_number(bounds: Bounds, pace: float, count: int) -> None:
    assert settled(bounds, [pace] * count, rounds=2) == [bounds.usual] * count


@settings(deadline=None, max_examples=40)
@given(BOUNDS, PACES, st.floats(0.01, 100.0))
def test_the_unit_of_time_does_not_matter(bounds: Bounds, paces: list[float], unit: float) -> None:
    assert fair_seconds(bounds, [pace * unit for pace in paces]) == pytest.approx(unit * fair_seconds(bounds, paces))


@settings(deadline=None, max_examples=40)
@given(BOUNDS, PACES)
def test_numbers_stay_within_bounds_and_come_to_rest(bounds: Bounds, paces: list[float]) -> None:
    counts = settled(bounds, paces)
    assert all(1 <= count <= bounds.most for count in counts)
    assert counts == settled(bounds, paces, counts, 1)
    # Nobody drives the others up by more than a microbatch of its own.
    most = max(fair_seconds(bounds, paces) + max(paces), max(paces) * bounds.stages) * (1 + 1e-9)
    for pace, count in zip(paces, counts, strict=True):
        assert count <= bounds.usual or step_seconds(pace, count, bounds.stages) <= most


@pytest.mark.parametrize("usual", [3, 4, 6, 8, 16])
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize(
    "paces", [[1.0, 1.0, 1.0, 4.0], [1.0, 2.0, 2.0, 4.0], [1.0, 4.0], [1.0, 1.0, 3.0], [1.0, 1.3, 1.7, 2.9]]
)
def test_pipelines_of_unequal_speed_take_equal_time(usual: int, stages: int, paces: list[float]) -> None:
    bounds = Bounds(usual, stages)
    counts = settled(bounds, paces)
    assert idle(bounds, paces, counts) < 0.1
    assert mean(counts) <= 1.25 * usual or 1 in counts


def test_fixed_numbers_lose_more_than_half_where_three_are_four_times_as_fast() -> None:
    bounds, paces = Bounds(8, 2), [1.0, 1.0, 1.0, 4.0]
    assert idle(bounds, paces, [8] * 4) > 0.5
    assert settled(bounds, paces) == [11, 11, 11, 2]
    assert idle(bounds, paces, [11, 11, 11, 2]) < 0.1


def test_where_one_microbatch_takes_longer_than_the_others_steps_they_use_the_time() -> None:
    assert settled(Bounds(2, 2), [1.0, 1.0, 1.0, 4.0]) == [7, 7, 7, 1]
    assert settled(Bounds(2, 2), [1.0, 20.0]) == [2 * MOST, 1]


def test_a_small_gain_is_not_worth_a_change() -> None:
    assert settled(Bounds(8, 2), [1.0, 1.1]) == [8, 8]
    assert settled(Bounds(8, 2), [1.0, 1.5]) != [8, 8]


# Measuring.

OTHERS = announced([1.0, 1.0, 1.0], [8, 8, 8])


def heard_by(pacing: Pacing, pacings: list[Pacing]) -> list[Pace]:
    """What the others say."""
    known = [other for other in pacings if other is not pacing and other.seconds]
    return announced([other.seconds for other in known], [other.microbatches for other in known])


def measure(pacing: Pacing, seconds: float, steps: int = COOLDOWN) -> None:
    for _ in range(steps):
        pacing.measured(pacing.samples, step_seconds(seconds, pacing.microbatches, 2))


def test_nothing_is_announced_before_enough_is_measured() -> None:
    pacing = Pacing(DATA, 2)
    measure(pacing, 0.5, ENOUGH - 1)
    assert pacing.seconds == 0.0
    measure(pacing, 0.5, 1)
    assert pacing.seconds == pytest.approx(0.5)
    assert repr(pacing) == "<Pacing 8 microbatches a step, 500.0 ms each>"
    assert not pacing.adapt(OTHERS)


def test_a_few_slow_steps_are_not_a_slow_pipeline() -> None:
    pacing = Pacing(DATA, 2)
    measure(pacing, 0.5, 7)
    measure(pacing, 50.0, 5)
    assert pacing.seconds == pytest.approx(0.5)


def test_short_batches_and_steps_of_another_number_are_not_measured() -> None:
    pacing = Pacing(DATA, 2)
    for _ in range(20):
        pacing.measured(DATA.batch - 1, 1.0)
        pacing.measured(2 * DATA.batch, 1.0)
        pacing.measured(DATA.batch, 0.0)
    assert pacing.seconds == 0.0


def test_it_adapts_after_a_cool_down_and_measures_anew() -> None:
    pacing = Pacing(DATA, 2)
    measure(pacing, 4.0)
    assert pacing.adapt(OTHERS)
    assert (pacing.microbatches, pacing.samples) == (2, 16)
    assert pacing.seconds == pytest.approx(4.0)
    # Alone again, and not yet: steps of the old number are still on their way.
    pacing.measured(64, 36.0)
    measure(pacing, 4.0, COOLDOWN - 1)
    assert not pacing.adapt([])
    measure(pacing, 4.0, 1)
    assert pacing.adapt([])
    assert pacing.microbatches == 8


def test_a_newcomer_and_a_mended_pipeline_know_nothing() -> None:
    pacing = Pacing(DATA, 2)
    assert not pacing.adapt(OTHERS)
    measure(pacing, 4.0)
    assert pacing.adapt(OTHERS)
    pacing.forget()
    assert (pacing.seconds, pacing.microbatches) == (0.0, 2)
    assert not pacing.adapt(OTHERS)


def test_a_fixed_batch_stays() -> None:
    pacing = Pacing(DataSection(batch=64, microbatches=8, adaptive=False), 2)
    measure(pacing, 4.0)
    assert not pacing.adapt(OTHERS)
    assert pacing.samples == 64
    assert pacing.seconds == pytest.approx(4.0)


def test_a_wrong_model_of_the_bubble_ends_in_equal_times_too() -> None:
    # A step takes 3 s and 1 s for each microbatch, where the model says u (n + 1).
    def seconds(pace: float, count: int) -> float:
        return pace * (count + 3)

    paces = [1.0, 4.0]
    pacings = [Pacing(DATA, 2) for _ in paces]
    for _ in range(100):
        for pacing, pace in zip(pacings, paces, strict=True):
            pacing.measured(pacing.samples, seconds(pace, pacing.microbatches))
            pacing.adapt(heard_by(pacing, pacings))
    times = [seconds(pace, pacing.microbatches) for pacing, pace in zip(pacings, paces, strict=True)]
    assert max(times) / min(times) <= 1.25


@pytest.mark.parametrize("seed", range(4))
def test_equal_pipelines_on_a_noisy_machine_do_not_jitter(seed: int) -> None:
    draw = random.Random(seed)
    pacings = [Pacing(DATA, 2) for _ in range(4)]
    changes = 0
    for _ in range(500):
        for pacing in pacings:
            # Every step is off by a sixth, and some take three times as long.
            noise = draw.lognormvariate(0.0, 0.15) * (3.0 if draw.random() < 0.05 else 1.0)
            pacing.measured(pacing.samples, step_seconds(0.1, pacing.microbatches, 2) * noise)
            changes += pacing.adapt(heard_by(pacing, pacings))
    assert changes <= 4
    assert all(7 <= pacing.microbatches <= 9 for pacing in pacings)
