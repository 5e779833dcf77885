from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.model.rates import learning_rate, warmup_fraction
from distqat.sections import OptimizerSection


def section(**values: object) -> OptimizerSection:
    return OptimizerSection.model_validate({"learning_rate": 0.4, **values})


@given(st.floats(0, 1))
def test_constant_is_constant(progress: float) -> None:
    assert learning_rate(section(), progress, 0.0) == 0.4


def test_warm_up_rises_by_one_part_with_each_batch() -> None:
    own = section(warmup_steps=4)
    fraction = warmup_fraction(own, batch=8, budget=320)
    assert fraction == 0.1
    rates = [learning_rate(own, step * 8 / 320, fraction) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_cosine_falls_from_the_end_of_the_warm_up_to_its_final_fraction() -> None:
    own = section(schedule="cosine", warmup_steps=10, final_fraction=0.1)
    assert learning_rate(own, 0.2, 0.2) == 0.4
    assert learning_rate(own, 0.6, 0.2) == pytest.approx(0.4 * 0.55)
    assert learning_rate(own, 1.0, 0.2) == pytest.approx(0.04)
    assert learning_rate(section(schedule="cosine", final_fraction=0), 1.0, 0.0) == pytest.approx(0.0)
    assert learning_rate(section(schedule="cosine", final_fraction=1), 0.7, 0.0) == pytest.approx(0.4)


@given(st.floats(0, 1), st.floats(0, 0.9), st.integers(1, 1000), st.floats(0, 1))
def test_cosine_is_the_papers_formula(progress: float, warmup: float, steps: int, final: float) -> None:
    own = section(schedule="cosine", warmup_steps=steps, final_fraction=final)
    rate = learning_rate(own, progress, warmup)
    assert 0 <= rate <= 0.4 * (1 + 1e-12)
    if progress >= warmup:
        done = (progress - warmup) / (1 - warmup)
        low = 0.4 * final
        assert rate == pytest.approx(low + 0.5 * (0.4 - low) * (1 + math.cos(math.pi * done)), abs=1e-12)


@pytest.mark.parametrize("warmup", [1.0, 3.0])
def test_a_run_that_is_shorter_than_its_warm_up(warmup: float) -> None:
    own = section(schedule="cosine", warmup_steps=30)
    rates = [learning_rate(own, step / 10, warmup) for step in range(11)]
    assert rates == sorted(rates)
    assert rates[0] > 0
    assert rates[-1] <= 0.4
