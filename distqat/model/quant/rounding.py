"""Values to codes and back, with the gradients of learned step sizes.

LSQ: Esser et al., Learned Step Size Quantization, 2020 (arXiv 1902.08153). LSQ+ adds an offset: Bhalgat et al., LSQ+:
Improving low-bit quantization through learnable offsets and better initialization, 2020 (arXiv 2004.09576).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distqat.model.quant.grid import Channels, Grid, beside, shared_axes

SMALLEST_STEP = 1e-8
"""A step that is learned to be less, or negative, counts as this."""


def rounded(
    values: Tensor,
    step: Tensor,
    offset: Tensor | None,
    grid: Grid,
    channels: Channels | None,
    gradient_scale: float = 1.0,
) -> Tensor:
    """The values as their codes stand for them, in their type; computed in fp32.

    `step` and `offset` are () or (channels,). Backward passes through where a value is within the grid; the gradients
    of step and offset are the papers', times `gradient_scale`.
    """
    result: Tensor = _Rounding.apply(values, step, offset, grid, channels, gradient_scale)  # type: ignore[no-untyped-call]
    return result


def codes_of(values: Tensor, step: Tensor, offset: Tensor | None, grid: Grid, channels: Channels | None) -> Tensor:
    """The whole numbers that stand for the values, in fp32."""
    return _places(values, step, offset, channels).round().clamp_(grid.lowest, grid.highest)


def values_of(codes: Tensor, step: Tensor, offset: Tensor | None, channels: Channels | None) -> Tensor:
    """What these codes (fp32, changed in place) stand for; bit for bit what `rounded` gives."""
    values = codes.mul_(beside(effective(step), codes, channels))
    return values if offset is None else values.add_(beside(offset, values, channels))


def effective(step: Tensor) -> Tensor:
    """The step as it is computed with."""
    return step.clamp(min=SMALLEST_STEP)


def _places(values: Tensor, step: Tensor, offset: Tensor | None, channels: Channels | None) -> Tensor:
    """Where the values lie on the grid, not rounded."""
    moved = values.float() if offset is None else values.float() - beside(offset, values, channels)
    return moved / beside(effective(step), values, channels)


def straight_through(exact: Tensor, plain: Tensor) -> Tensor:
    """The numbers of the first, the gradients of the second, of the same shape and type."""
    result: Tensor = _StraightThrough.apply(exact, plain)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exact: Tensor, plain: Tensor) -> Tensor:
        ctx.mark_dirty(exact)  # It is nobody else's, and may be changed in place like any result.
        return exact

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        step: Tensor,
        offset: Tensor | None,
        grid: Grid,
        channels: Channels | None,
        gradient_scale: float,
    ) -> Tensor:
        places = _places(values, step, offset, channels)
        ctx.save_for_backward(places)
        ctx.how = (grid, channels, gradient_scale)
        result = places.round().clamp_(grid.lowest, grid.highest)
        return values_of(result, step, offset, channels).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        grid, channels, scale = ctx.how
        above = gradients[0].float()
        is_inside = (places > grid.lowest) & (places < grid.highest)
        of_values = of_step = of_offset = None
        shared = shared_axes(places, channels)
        if ctx.needs_input_grad[0]:
            of_values = (above * is_inside).to(gradients[0].dtype)
        if ctx.needs_input_grad[1]:
            slope = places.round().clamp_(grid.lowest, grid.highest) - places * is_inside
            of_step = (above * slope).sum(shared) * scale
        if ctx.needs_input_grad[2]:
            of_offset = (above * ~is_inside).sum(shared) * scale
        return of_values, of_step, of_offset, None, None, None
