"""What the hardware is that multiplies and adds codes, and a weight's code as slices of fewer bits. Pure.

The least significant slice comes first. All slices but the last hold whole numbers from 0; the last one, which is the
most significant, has the bits that are left, and the sign if the code has one. So a code is the sum of its slices, each
moved up by its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distqat.model.quant.grid import Grid


@dataclass(frozen=True)
class Hardware:
    """How an array computes the outputs of a layer; 0 everywhere: without any bound."""

    slice_bits: int = 0
    """Of a slice of a weight; 0: the weight is in one piece."""
    accumulator_length: int = 0
    """So many products are summed exactly before the sum saturates; 0: all those of an output."""
    accumulator_bits: int = 0
    """Of such a sum, with its sign; 0: it holds every sum."""

    @property
    def lowest(self) -> int:
        """The least sum that an accumulator holds."""
        return -(1 << (self.accumulator_bits - 1))

    @property
    def highest(self) -> int:
        """The greatest."""
        return (1 << (self.accumulator_bits - 1)) - 1

    def num_slices(self, grid: Grid) -> int:
        """Of a weight on that grid."""
        return -(-grid.bits // self.slice_bits) if self.slice_bits else 1

    def slice_grids(self, grid: Grid) -> list[Grid]:
        """What each slice holds, the least significant first."""
        number = self.num_slices(grid)
        lower = [Grid(self.slice_bits, is_signed=False) for _ in range(number - 1)]
        return [*lower, Grid(grid.bits - (number - 1) * self.slice_bits, grid.is_signed)]


def sliced(codes: Tensor, grid: Grid, hardware: Hardware) -> Tensor:
    """Whole numbers of any type to [slices, ...] of the same type."""
    slices, rest = [], codes
    for _ in range(hardware.num_slices(grid) - 1):
        low = rest.remainder(1 << hardware.slice_bits)
        slices.append(low)
        rest = (rest - low).div(1 << hardware.slice_bits, rounding_mode="floor").to(codes.dtype)
    return torch.stack([*slices, rest])


def joined(slices: Tensor, hardware: Hardware) -> Tensor:
    """What `sliced` was given, or the same of sums: exact as long as the type holds the result."""
    result = slices[0]
    for place in range(1, len(slices)):
        result = result + slices[place] * (1 << place * hardware.slice_bits)
    return result
