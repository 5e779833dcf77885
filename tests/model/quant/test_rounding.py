"""Rounding and its gradients are the papers', element for element."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distqat.model.quant.grid import Channels, Grid, step_shape
from distqat.model.quant.rounding import rounded

GRIDS = [Grid(bits, is_signed) for bits in range(2, 9) for is_signed in (True, False)]


def papers(value: float, step: float, offset: float, lowest: int, highest: int) -> tuple[float, float, float, float]:
    """Of one element: rounded, and its slopes by value, step and offset. Equations 1 to 5 of LSQ, 4 to 7 of LSQ+."""
    place = (value - offset) / step
    if place <= lowest:
        return lowest * step + offset, 0.0, float(lowest), 1.0
    if place >= highest:
        return highest * step + offset, 0.0, float(highest), 1.0
    return round(place) * step + offset, 1.0, round(place) - place, 0.0


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("has_offset", [False, True])
def test_each_element_is_the_papers(grid: Grid, axis: int | None, has_offset: bool) -> None:
    numbers = torch.Generator().manual_seed(grid.bits)
    values = torch.randn(3, 4, 5, generator=numbers).requires_grad_()
    channels = None if axis is None else Channels(axis, values.shape[axis])
    shape = step_shape(channels)
    step = (torch.rand(shape, generator=numbers) * 2 / math.sqrt(grid.highest) + 0.01).requires_grad_()
    offset = (0.3 * torch.randn(shape, generator=numbers)).requires_grad_() if has_offset else None
    above = torch.randn(3, 4, 5, generator=numbers)

    result = rounded(values, step, offset, grid, channels, gradient_scale=0.25)
    torch.autograd.backward(result, above)
    found = result.detach()

    by_step, by_offset = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    assert values.grad is not None
    plain, plain_step = values.detach(), step.detach()
    plain_offset = torch.zeros(shape) if offset is None else offset.detach()
    for where in torch.cartesian_prod(*(torch.arange(size) for size in values.shape)).tolist():
        place = tuple(where)
        own = () if axis is None else (place[axis],)
        numbers_of = float(plain[place]), float(plain_step[own]), float(plain_offset[own])
        expected, slope, of_step, of_offset = papers(*numbers_of, grid.lowest, grid.highest)
        assert float(found[place]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert float(values.grad[place]) == pytest.approx(slope * float(above[place]))
        by_step[own] += 0.25 * of_step * float(above[place])
        by_offset[own] += 0.25 * of_offset * float(above[place])
    assert step.grad is not None
    torch.testing.assert_close(step.grad.double(), by_step, rtol=1e-4, atol=1e-4)
    if offset is not None:
        assert offset.grad is not None
        torch.testing.assert_close(offset.grad.double(), by_offset, rtol=1e-4, atol=1e-4)


def pseudo_code(values: Tensor, step: Tensor, grid: Grid, scale: float) -> Tensor:
    """Appendix B of LSQ: the same by torch's own gradients of detached differences."""
    scaled = (step - step * scale).detach() + step * scale
    places = (values / scaled).clamp(grid.lowest, grid.highest)
    whole = (places.round() - places).detach() + places
    return whole * scaled


@given(st.integers(2, 8), st.booleans(), st.integers(0, 1 << 30), st.floats(0.01, 1.0), st.integers(1, 40))
def test_gradients_are_those_of_the_pseudo_code(bits: int, signed: bool, seed: int, first: float, size: int) -> None:
    grid, numbers = Grid(bits, signed), torch.Generator().manual_seed(seed)
    values, above = torch.randn(size, generator=numbers), torch.randn(size, generator=numbers)
    scale = 1 / math.sqrt(size * grid.highest)
    found = []
    for is_ours in (True, False):
        own, step = values.clone().requires_grad_(), torch.tensor(first).requires_grad_()
        result = rounded(own, step, None, grid, None, scale) if is_ours else pseudo_code(own, step, grid, scale)
        found.append([result.detach(), *torch.autograd.grad(result, (own, step), above)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_are_whole_and_within_the_grid(grid: Grid) -> None:
    assert grid.highest - grid.lowest == 2**grid.bits - 1
    values, step = torch.linspace(-9, 9, 999), torch.tensor(0.05)
    codes = rounded(values, step, None, grid, None) / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert (round(float(codes.min())), round(float(codes.max()))) == (max(grid.lowest, -180), min(grid.highest, 180))


def test_a_step_that_is_not_positive_counts_as_the_smallest() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0])
    for step in (0.0, -0.5):
        result = rounded(values, torch.tensor(step), None, Grid(4), None)
        assert bool(torch.isfinite(result).all())
        assert float(result.abs().max()) < 1e-6


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_in_fp32_and_handed_back_as_it_came(kind: torch.dtype) -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(1)).to(kind).requires_grad_()
    step = torch.tensor(0.1, requires_grad=True)
    result = rounded(values, step, None, Grid(4), None)
    torch.autograd.backward(result.sum())
    assert result.dtype == kind
    assert values.grad is not None
    assert values.grad.dtype == kind
    assert step.grad is not None
    assert step.grad.dtype == torch.float32
    assert torch.equal(result, rounded(values.detach().float(), step.detach(), None, Grid(4), None).to(kind))
