"""What a layer does to its weights and to what enters it: the modules that hold steps.

A weight's step begins with the seeded weights, so it is the same on all siblings. That of an input begins with the
first microbatch that is trained on; a buffer says that it has, and travels with the step, so a joiner does not begin
anew. Before, the step is that of standard normal values, which is what the anchor of the run has, and inputs pass as
they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distqat.model.quant.grid import Channels, Grid, shared_axes, step_shape
from distqat.model.quant.rounding import codes_of, effective, rounded

NORMAL_MAGNITUDE = math.sqrt(2 / math.pi)
"""Mean magnitude of standard normal values."""

MOMENTUM = 0.1
"""How much of a microbatch's range goes into the running one, as with batch norm."""


@dataclass(frozen=True)
class Coded:
    """Values as whole numbers; `codes` times `step`, plus `offset`, is what they are rounded to."""

    codes: Tensor
    """fp32, in the shape of the values."""
    step: Tensor
    """() or (channels,), more than 0."""
    offset: Tensor | None


class Quantizer(nn.Module):
    """From values to rounded values of the same shape and type."""

    def __init__(self, grid: Grid, channels: Channels | None) -> None:
        super().__init__()
        self.grid = grid
        self.channels = channels

    def scale(self, values: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Step and offset with which these values are rounded; None: they are not yet. Changes nothing."""
        raise NotImplementedError

    @torch.no_grad()
    def code(self, values: Tensor) -> Coded | None:
        """The values as `forward` has just rounded them; None: they passed as they are."""
        scale = self.scale(values)
        if scale is None:
            return None
        step, offset = scale
        return Coded(codes_of(values, step, offset, self.grid, self.channels), effective(step), offset)

    def extra_repr(self) -> str:
        per = "tensor" if self.channels is None else f"each of {self.channels.number} channels"
        return f"{self.grid.bits} bits, {'' if self.grid.is_signed else 'un'}signed, one step for {per}"


class LearnedQuantizer(Quantizer):
    """With a step that is a parameter."""

    def __init__(self, grid: Grid, channels: Channels | None, has_offset: bool = False) -> None:
        super().__init__(grid, channels)
        first = 2 * NORMAL_MAGNITUDE / math.sqrt(grid.highest)
        self.step = nn.Parameter(torch.full(step_shape(channels), first))
        self.offset = nn.Parameter(torch.zeros(step_shape(channels))) if has_offset else None

    def scale(self, values: Tensor) -> tuple[Tensor, Tensor | None] | None:
        return self.step, self.offset

    def _rounded(self, values: Tensor, elements: int) -> Tensor:
        """`elements`: of the tensor, or of a sample, that all steps share."""
        each = elements / self.step.numel()
        scale = 1.0 / math.sqrt(each * self.grid.highest)
        return rounded(values, self.step, self.offset, self.grid, self.channels, scale)


class LearnedWeights(LearnedQuantizer):
    """Of a layer's weights, which give the step its first value."""

    @torch.no_grad()
    def begin(self, weight: Tensor) -> None:
        """The step as the paper has it, 2 mean|w| / sqrt(Qp)."""
        self.step.copy_(_first_step(weight, self.grid, self.channels))

    def forward(self, weight: Tensor) -> Tensor:
        return self._rounded(weight, weight.numel())


class _Begun:
    """Whether a buffer is more than zero; the device is asked again only when the buffer has been written to."""

    def __init__(self) -> None:
        self._seen: tuple[int, int] | None = None  # The buffer, and how often it was written to; None at first.
        self._is_so = False

    def ask(self, flag: Tensor) -> bool:
        now = (id(flag), flag._version)
        if now != self._seen:
            self._seen, self._is_so = now, bool(flag > 0)
        return self._is_so


class LearnedInputs(LearnedQuantizer):
    """Of what enters a layer."""

    initialised: Tensor

    def __init__(self, grid: Grid, channels: Channels | None, has_offset: bool = False) -> None:
        super().__init__(grid, channels, has_offset)
        # 1 when the step has begun; of floats, so that it is averaged, kept and handed on as running statistics are.
        self.register_buffer("initialised", torch.zeros(()))
        self._begun = _Begun()

    def forward(self, values: Tensor) -> Tensor:
        if not self._begun.ask(self.initialised):
            if not self.training:
                return values
            self._begin(values)
        return self._rounded(values, values[0].numel())

    def scale(self, values: Tensor) -> tuple[Tensor, Tensor | None] | None:
        return super().scale(values) if self._begun.ask(self.initialised) else None

    @torch.no_grad()
    def _begin(self, values: Tensor) -> None:
        """Raises ValueError for values that are not finite."""
        if self.offset is None:
            step = _first_step(values, self.grid, self.channels)
        else:
            shared = shared_axes(values, self.channels)
            low, high = values.float().amin(shared), values.float().amax(shared)
            step = _without_zeros((high - low) / (self.grid.highest - self.grid.lowest))
            self.offset.copy_(low - self.grid.lowest * step)
        if not bool(torch.isfinite(step).all()):
            raise ValueError("the first values of a quantised layer are not all finite")
        self.step.copy_(step)
        self.initialised.fill_(1.0)


class ObservedWeights(Quantizer):
    """With a step that follows the weights; nothing is learned or kept."""

    def __init__(self, grid: Grid, channels: Channels | None, percentile: float) -> None:
        super().__init__(grid, channels)
        self.percentile = percentile

    def scale(self, values: Tensor) -> tuple[Tensor, Tensor | None] | None:
        return _bound(values.detach(), self.channels, self.percentile) / self.grid.highest, None

    def forward(self, weight: Tensor) -> Tensor:
        bound = _bound(weight.detach(), self.channels, self.percentile)
        return rounded(weight, bound / self.grid.highest, None, self.grid, self.channels)


class ObservedInputs(Quantizer):
    """In training with the range of the microbatch, in evaluations with the running one, as batch norm does."""

    bound: Tensor
    initialised: Tensor

    def __init__(self, grid: Grid, channels: Channels | None, percentile: float) -> None:
        super().__init__(grid, channels)
        self.percentile = percentile
        self.register_buffer("bound", torch.zeros(step_shape(channels)))  # Running mean of the largest magnitude.
        self.register_buffer("initialised", torch.zeros(()))
        self._begun = _Begun()

    def scale(self, values: Tensor) -> tuple[Tensor, Tensor | None] | None:
        if self.training:
            return _bound(values.detach(), self.channels, self.percentile) / self.grid.highest, None
        return (self.bound / self.grid.highest, None) if self._begun.ask(self.initialised) else None

    def forward(self, values: Tensor) -> Tensor:
        bound = self.bound
        if self.training:
            bound = _bound(values.detach(), self.channels, self.percentile)
            with torch.no_grad():
                self.bound.copy_(torch.where(self.initialised > 0, self.bound.lerp(bound, MOMENTUM), bound))
                self.initialised.fill_(1.0)
        elif not self._begun.ask(self.initialised):
            return values
        return rounded(values, bound / self.grid.highest, None, self.grid, self.channels)


def _first_step(values: Tensor, grid: Grid, channels: Channels | None) -> Tensor:
    magnitude = values.detach().float().abs().mean(shared_axes(values, channels))
    return _without_zeros(2 * magnitude / math.sqrt(grid.highest))


def _without_zeros(step: Tensor) -> Tensor:
    """A channel of zeros has the mean step of the others; 1 where all are zeros."""
    mean = step.mean()
    return torch.where(step == 0, torch.where(mean == 0, torch.ones_like(mean), mean), step)


def _bound(values: Tensor, channels: Channels | None, percentile: float) -> Tensor:
    """The magnitude that so many percent of the values do not exceed; 100: the largest."""
    magnitudes = values.float().abs()
    if percentile >= 100:
        return magnitudes.amax(shared_axes(values, channels))
    rows = magnitudes.reshape(1, -1) if channels is None else magnitudes.movedim(channels.axis, 0).flatten(1)
    place = max(1, math.ceil(rows.shape[1] * percentile / 100))
    return rows.kthvalue(place, dim=1).values.view(step_shape(channels))
