"""The integers that values are rounded to, and how a step lies beside a tensor. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The codes of a format: whole numbers from `lowest` (-Qn of the paper) to `highest` (Qp)."""

    bits: int
    is_signed: bool = True

    @property
    def lowest(self) -> int:
        """0 if unsigned."""
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def highest(self) -> int:
        """With 2 bits and a sign 1, else at least 3."""
        return (1 << (self.bits - 1)) - 1 if self.is_signed else (1 << self.bits) - 1


@dataclass(frozen=True)
class Channels:
    """The axis of a tensor along which each index has a step of its own."""

    axis: int
    number: int

    def beside(self, step: Tensor, values: Tensor) -> Tensor:
        """The steps [number] in a shape that goes with the values."""
        shape = [1] * values.dim()
        shape[self.axis] = self.number
        return step.view(shape)

    def others(self, values: Tensor) -> list[int]:
        """The axes over which a step is shared."""
        own = self.axis % values.dim()
        return [axis for axis in range(values.dim()) if axis != own]


def step_shape(channels: Channels | None) -> tuple[int, ...]:
    """Of the steps of a tensor."""
    return () if channels is None else (channels.number,)


def beside(step: Tensor, values: Tensor, channels: Channels | None) -> Tensor:
    """The step or steps in a shape that goes with the values."""
    return step if channels is None else channels.beside(step, values)


def shared_axes(values: Tensor, channels: Channels | None) -> list[int]:
    """The axes over which one step is shared."""
    return list(range(values.dim())) if channels is None else channels.others(values)
