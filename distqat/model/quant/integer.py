"""A layer in whole numbers, as hardware computes it: products of codes, summed in accumulators that saturate.

The products of an output come in the order in which the weights lie in memory (of a convolution: channel, row, column).
Each `accumulator_length` of them are summed exactly, as an analog array sums the currents of a column, and then the sum
saturates, as its converter does; each slice of the weights has an array of its own. All that follows is outside of the
array, digital and without bound: sums and slices are added, multiplied by the steps, and offsets and bias are added.

Whole numbers are computed in fp32 where that holds every sum, and in fp64 elsewhere, so kernels for floats serve, in
whatever order they add.

Shapes: S slices, G groups, O channels that leave a group, K products of an output, N places of outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distqat.model.quant.grid import Grid
from distqat.model.quant.slices import Hardware, joined, sliced

EXACT_IN_FP32 = 1 << 24
"""Magnitude up to which fp32 holds every whole number."""

ROWS_AT_ONCE = 1024
"""Of S times O, for which sums wait in memory at a time."""


@dataclass(frozen=True)
class Array:
    """The hardware, and which codes it is given."""

    hardware: Hardware
    weights: Grid
    inputs: Grid


def accumulate(weights_GOK: Tensor, inputs_GKN: Tensor, array: Array) -> Tensor:
    """Sums [G, O, N] of products of these codes, whole numbers in fp32 or fp64."""
    products = weights_GOK.shape[2]
    length = min(array.hardware.accumulator_length or products, products)
    if _can_saturate(length, array):
        return sum_of(saturated(weights_GOK, inputs_GKN, array, length), None, array)
    kind = _type_for(products, array.weights, array.inputs)
    return weights_GOK.to(kind) @ inputs_GKN.to(kind)


def accumulate_by_channel(weights_GOK: Tensor, inputs_GKN: Tensor, steps_GC: Tensor, array: Array) -> Tensor:
    """The same where each channel that enters has a step of its own; [G, O, N] in the unit of the steps, fp64.

    Codes of different steps do not add up to anything, so an accumulator ends where its channel does.
    """
    groups, rows, products = weights_GOK.shape
    channels = steps_GC.shape[1]
    own = products // channels
    length = min(array.hardware.accumulator_length or own, own)
    if not _can_saturate(length, array):
        # Neither slices nor accumulators change the sum of a channel.
        array, length = replace(array, hardware=Hardware()), own
    # A channel's products are filled up to whole accumulators.
    pad = -own % length
    weights = torch.nn.functional.pad(weights_GOK.view(groups, rows, channels, own), (0, pad))
    inputs = torch.nn.functional.pad(inputs_GKN.reshape(groups, channels, own, -1), (0, 0, 0, pad))
    steps = steps_GC.double().repeat_interleave((own + pad) // length, dim=1)
    return sum_of(saturated(weights.flatten(2), inputs.flatten(1, 2), array, length), steps, array)


def saturated(weights_GOK: Tensor, inputs_GKN: Tensor, array: Array, length: int) -> Iterator[Tensor]:
    """The sums that accumulators of that length hold: [G, chunks, S * O, N], some chunks of products at a time."""
    hardware = array.hardware
    kind = _type_for(length, array.weights, array.inputs)
    slices_SGOK = sliced(weights_GOK.to(kind), array.weights, hardware)
    weights_GRK = slices_SGOK.transpose(0, 1).flatten(1, 2)
    pad = -weights_GRK.shape[2] % length
    weights_GRK = torch.nn.functional.pad(weights_GRK, (0, pad))
    inputs_GKN = torch.nn.functional.pad(inputs_GKN.to(kind), (0, 0, 0, pad))
    groups, rows, products = weights_GRK.shape
    weights_GCRL = weights_GRK.view(groups, rows, products // length, length).transpose(1, 2)
    inputs_GCLN = inputs_GKN.reshape(groups, products // length, length, -1)
    # How many does not depend on N: what is added in fractions is added in the same order for every batch.
    at_once = max(1, ROWS_AT_ONCE // rows)
    for begin in range(0, weights_GCRL.shape[1], at_once):
        chunk = slice(begin, begin + at_once)
        sums_GCRN = weights_GCRL[:, chunk] @ inputs_GCLN[:, chunk]
        yield sums_GCRN.clamp_(hardware.lowest, hardware.highest) if hardware.accumulator_bits else sums_GCRN


def sum_of(parts: Iterator[Tensor], steps_GC: Tensor | None, array: Array) -> Tensor:
    """What accumulators held, each times its step if there are steps, over all of them and all slices: [G, O, N]."""
    total, begin = None, 0
    for part_GCRN in parts:
        # What was bounded adds up without bound.
        if steps_GC is not None:
            part_GCRN = part_GCRN.double() * steps_GC[:, begin : begin + part_GCRN.shape[1], None, None]
            begin += part_GCRN.shape[1]
        own_GRN = part_GCRN.sum(1, dtype=torch.float64)
        total = own_GRN if total is None else total + own_GRN
    assert total is not None
    groups, rows, places = total.shape
    slices = array.hardware.num_slices(array.weights)
    return joined(total.view(groups, slices, rows // slices, places).transpose(0, 1), array.hardware)


def _can_saturate(length: int, array: Array) -> bool:
    """Whether the sum of so many products of a slice can be beyond what an accumulator holds."""
    if not array.hardware.accumulator_bits:
        return False
    slices = array.hardware.slice_grids(array.weights)
    return any(length * _largest(grid) * _largest(array.inputs) > array.hardware.highest for grid in slices)


def _type_for(length: int, weights: Grid, inputs: Grid) -> torch.dtype:
    """In which every sum of so many products is exact, whatever the order in which they are added."""
    return torch.float32 if length * _largest(weights) * _largest(inputs) <= EXACT_IN_FP32 else torch.float64


def _largest(grid: Grid) -> int:
    return max(grid.highest, -grid.lowest)
