"""Compiled passes beside numpy, operation by operation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distqat.averaging import loops
from distqat.averaging.loops import LANES, ROW
from distqat.wire.codecs.codec import Floats

LENGTHS = [0, 1, LANES - 1, LANES, ROW - 1, ROW, ROW + LANES + 1, 3 * ROW + 5]


def normal(length: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(length, dtype=np.float32)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_outer_step_is_rounded_after_each_operation(length: int) -> None:
    theta, momentum, mean = (normal(length, seed) for seed in (1, 2, 3))
    after, moved = np.empty_like(theta), np.empty_like(theta)
    loops.nesterov(theta, momentum, mean, 0.9, 0.7, after, moved)
    mu, rate = np.float32(0.9), np.float32(0.7)
    expected = momentum * mu + mean
    assert moved.tobytes() == expected.tobytes()
    assert after.tobytes() == (theta - (mean + expected * mu) * rate).tobytes()


@pytest.mark.parametrize("length", LENGTHS)
def test_squares_are_those_of_the_difference(length: int) -> None:
    first, second = normal(length, 1), normal(length, 2)
    exact = float(((first.astype(np.float64) - second) ** 2).sum())
    assert loops.squares_of_difference(first, second) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, 1e30])
@pytest.mark.parametrize("at", [0, LANES, ROW, ROW + LANES + 4])
def test_a_number_that_is_none_shows(wrong: float, at: int) -> None:
    first, second = normal(ROW + LANES + 5, 1), normal(ROW + LANES + 5, 2)
    first[at] = wrong
    assert not math.isfinite(loops.squares_of_difference(first, second))
    assert not math.isfinite(loops.squares_of_difference(second, first))
