from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.model import agreement
from distqat.model.agreement import GROWTH_STEPS, LossScale, Verdict, decide, first_scale, needs_norms
from distqat.sections import OptimizerSection, Precision

SQUARES = st.lists(st.floats(0, 1e12), min_size=1, max_size=30)
PLAIN = OptimizerSection()


def clipped(norm: float) -> OptimizerSection:
    return OptimizerSection(clip_norm=norm)


@given(SQUARES, st.floats(1e-3, 1e3), st.randoms())
def test_neither_order_nor_grouping_matters(squares: list[float], clip: float, random: object) -> None:
    shuffled = list(squares)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    scale = LossScale(1024.0)
    assert decide(squares, clipped(clip), "fp16", scale) == decide(shuffled, clipped(clip), "fp16", scale)


@settings(deadline=None, max_examples=50)
@given(SQUARES, st.floats(1e-3, 1e3))
def test_the_factor_is_that_of_torch(squares: list[float], clip: float) -> None:
    gradients = [torch.tensor([math.sqrt(square)], dtype=torch.float64) for square in squares]
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    factor = decide(squares, clipped(clip), "fp32", LossScale()).factor
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient * factor, rtol=1e-12, atol=0)


def test_a_small_gradient_is_not_touched() -> None:
    assert decide([0.25, 0.5], clipped(1.0), "fp32", LossScale()) == Verdict(1.0, LossScale())
    assert decide([1e30], PLAIN, "bf16", LossScale()) == Verdict(1.0, LossScale())


def test_the_scale_is_taken_out_of_norm_and_gradients() -> None:
    scale = LossScale(8.0)
    assert decide([64.0], PLAIN, "fp16", scale).factor == 1 / 8
    assert decide([64.0], clipped(2.0), "fp16", scale).factor == 1 / 8
    assert decide([64.0], clipped(0.5), "fp16", scale).factor == pytest.approx(0.5 / 8, rel=1e-5)


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1.7e308, -1.0])
def test_what_is_not_finite_skips_the_step(bad: float) -> None:
    squares = [1.0, bad, 1.7e308 if bad == 1.7e308 else -2.0 if bad < 0 else 0.0]
    assert decide(squares, clipped(1.0), "fp16", LossScale(64.0, 7)) == Verdict(0.0, LossScale(32.0, 0))
    assert decide(squares, clipped(1.0), "fp32", LossScale()) == Verdict(0.0, LossScale())


def test_the_scale_grows_after_a_streak_and_stays_in_its_bounds() -> None:
    scale = first_scale("fp16")
    assert scale == LossScale(65536.0)
    for step in range(1, GROWTH_STEPS):
        scale = decide([1.0], PLAIN, "fp16", scale).scale
        assert scale == LossScale(65536.0, step)
    assert decide([1.0], PLAIN, "fp16", scale).scale == LossScale(131072.0)
    largest = LossScale(agreement.LARGEST_SCALE, GROWTH_STEPS - 1)
    assert decide([1.0], PLAIN, "fp16", largest).scale == LossScale(agreement.LARGEST_SCALE)
    smallest = LossScale(agreement.SMALLEST_SCALE, 5)
    assert decide([math.inf], PLAIN, "fp16", smallest).scale == LossScale(agreement.SMALLEST_SCALE)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), max_size=16))
def test_the_scale_moves_as_torchs_own(overflows: list[bool]) -> None:
    """`torch.amp.GradScaler` with the same constants, as far as our bounds are not reached."""
    torchs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=GROWTH_STEPS)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter])
    torchs.scale(torch.zeros(1))
    scale = LossScale(2.0**16)
    for is_overflow in overflows:
        parameter.grad = torch.full((1,), math.inf if is_overflow else 1.0)
        torchs.step(optimizer)
        torchs.update()
        scale = decide([float(parameter.grad.square())], PLAIN, "fp16", scale).scale
        assert scale.value == torchs.get_scale()


@pytest.mark.parametrize(
    ("section", "precision", "needed"),
    [
        (PLAIN, "fp32", False),
        (PLAIN, "bf16", False),
        (PLAIN, "fp16", True),
        (clipped(1.0), "fp32", True),
        (clipped(1.0), "bf16", True),
    ],
)
def test_when_norms_are_needed(section: OptimizerSection, precision: Precision, needed: bool) -> None:
    assert needs_norms(section, precision) == needed
    assert first_scale(precision).value == (65536.0 if precision == "fp16" else 1.0)
