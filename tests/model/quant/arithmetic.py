"""Whole numbers one by one: what hardware with slices and bounded accumulators computes, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from torch import Tensor, nn

from distqat.model.quant.grid import Grid
from distqat.model.quant.slices import Hardware


def slices_of(code: int, grid: Grid, hardware: Hardware) -> list[int]:
    """The bits of a code, least significant slice first; the last keeps the sign."""
    if not hardware.slice_bits:
        return [code]
    parts = []
    for _ in range(-(-grid.bits // hardware.slice_bits) - 1):
        parts.append(code & ((1 << hardware.slice_bits) - 1))
        code >>= hardware.slice_bits
    return [*parts, code]


def dot(weights: Sequence[int], inputs: Sequence[int], grid: Grid, hardware: Hardware) -> int:
    """One output: each run of products of a slice is summed, held within the accumulator, and added up."""
    length = hardware.accumulator_length or len(weights)
    total = 0
    for place in range(len(slices_of(0, grid, hardware))):
        for begin in range(0, len(weights), length):
            held = 0
            for weight, code in zip(weights[begin : begin + length], inputs[begin : begin + length], strict=True):
                held += slices_of(weight, grid, hardware)[place] * code
            if hardware.accumulator_bits:
                most = 2 ** (hardware.accumulator_bits - 1)
                held = min(max(held, -most), most - 1)
            total += held * 2 ** (place * hardware.slice_bits)
    return total


def inputs_of(layer: Any, codes: Tensor, sample: int, output: int, place: Sequence[int]) -> list[int]:
    """What an output is summed from, in the order of its weights in memory; zeros stand around an image."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return [int(code) for code in codes[sample]]
    of_group = layer.in_channels // layer.groups
    first = output // (layer.out_channels // layer.groups) * of_group
    paddings: list[Any] = [layer.padding] * len(place) if isinstance(layer.padding, int) else list(layer.padding)
    found = []
    for channel in range(first, first + of_group):
        for offsets in product(*(range(size) for size in layer.kernel_size)):
            where = [
                at * stride + offset * dilation - padding
                for at, stride, offset, dilation, padding in zip(
                    place, layer.stride, offsets, layer.dilation, paddings, strict=True
                )
            ]
            is_inside = all(0 <= at < size for at, size in zip(where, codes.shape[2:], strict=True))
            found.append(int(codes[(sample, channel, *where)]) if is_inside else 0)
    return found
