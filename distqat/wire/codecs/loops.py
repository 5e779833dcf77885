"""The loops of int8 and int4, and one that adds weighed numbers up: all operations on a block while it is at hand.

They take whole blocks. What they make is stated in `layout`; each operation is one of fp32, rounded by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from distqat.compiled import BYTES, FLOAT, FLOATS, READ_BYTES, READ_FLOATS, compiled
from distqat.wire.codecs.codec import Bytes, Floats
from distqat.wire.codecs.layout import FLOOR, INT4, INT8

MAGNITUDE = np.int32(0x7FFFFFFF)
"""Bits of an fp32 without its sign. As integers they are compared faster, and NaN is the largest of all."""

SMALLEST = np.float32(FLOOR)

ROUNDER = np.float32(3 << 22)
"""1.5 * 2^23: a small number plus this has no bits behind the point. It is rounded, and lies in the lowest byte."""
ROUNDER_OF_HALVES = np.float32((3 << 22) + 8)

BLOCK8, BLOCK4 = INT8.block, INT4.block
LEVELS8, LEVELS4 = np.float32(INT8.levels), np.float32(INT4.levels)
STEP8, STEP4 = np.float32(1 / INT8.levels), np.float32(1 / INT4.levels)

LANES = 32
"""Sums that are taken side by side."""


@compiled(READ_FLOATS, FLOATS, BYTES)
def encode8(values: Floats, scales: Floats, codes: Bytes) -> int:
    """Fill scales and codes; returns the bits of the largest magnitude."""
    bits, tops = values.view(np.int32), scales.view(np.int32)
    rounded = np.empty(BLOCK8, np.float32)
    low = rounded.view(np.int32)
    worst = np.int32(0)
    for number in range(len(scales)):
        begin = number * BLOCK8
        own, magnitudes = values[begin : begin + BLOCK8], bits[begin : begin + BLOCK8]
        place = codes[begin : begin + BLOCK8]
        top = np.int32(0)
        for at in range(BLOCK8):
            magnitude = magnitudes[at] & MAGNITUDE
            top = magnitude if magnitude > top else top
        worst = top if top > worst else worst
        tops[number] = top
        largest = scales[number] if scales[number] > SMALLEST else SMALLEST
        inverse = LEVELS8 / largest
        scales[number] = largest * STEP8
        for at in range(BLOCK8):
            rounded[at] = own[at] * inverse + ROUNDER
        for at in range(BLOCK8):
            place[at] = low[at]
    return int(worst)


@compiled(READ_FLOATS, FLOATS, BYTES)
def encode4(values: Floats, scales: Floats, codes: Bytes) -> int:
    """Fill scales and codes; returns the bits of the largest magnitude."""
    bits, tops = values.view(np.int32), scales.view(np.int32)
    rounded = np.empty(BLOCK4, np.float32)
    pairs = rounded.view(np.int64)
    worst = np.int32(0)
    for number in range(len(scales)):
        begin = number * BLOCK4
        own, magnitudes = values[begin : begin + BLOCK4], bits[begin : begin + BLOCK4]
        place = codes[begin // 2 : (begin + BLOCK4) // 2]
        top = np.int32(0)
        for at in range(BLOCK4):
            magnitude = magnitudes[at] & MAGNITUDE
            top = magnitude if magnitude > top else top
        worst = top if top > worst else worst
        tops[number] = top
        largest = scales[number] if scales[number] > SMALLEST else SMALLEST
        inverse = LEVELS4 / largest
        scales[number] = largest * STEP4
        for at in range(BLOCK4):
            rounded[at] = own[at] * inverse + ROUNDER_OF_HALVES
        for at in range(BLOCK4 // 2):
            place[at] = (pairs[at] & 0x0F) | ((pairs[at] >> 28) & 0xF0)
    return int(worst)


@compiled(READ_FLOATS, READ_BYTES, FLOATS)
def decode8(scales: Floats, codes: Bytes, values: Floats) -> None:
    """Fill the values."""
    for number in range(len(scales)):
        begin = number * BLOCK8
        scale = scales[number]
        place, own = values[begin : begin + BLOCK8], codes[begin : begin + BLOCK8].view(np.int8)
        for at in range(BLOCK8):
            place[at] = np.float32(own[at]) * scale


@compiled(READ_FLOATS, READ_BYTES, FLOATS)
def decode4(scales: Floats, codes: Bytes, values: Floats) -> None:
    """Fill the values."""
    for number in range(len(scales)):
        begin = number * BLOCK4
        scale = scales[number]
        place, own = values[begin : begin + BLOCK4], codes[begin // 2 : (begin + BLOCK4) // 2]
        for at in range(BLOCK4 // 2):
            place[2 * at] = np.float32(np.int32(own[at] & 0x0F) - 8) * scale
            place[2 * at + 1] = np.float32(np.int32(own[at] >> 4) - 8) * scale


@compiled(READ_FLOATS, READ_BYTES, FLOAT, FLOATS)
def add8(scales: Floats, codes: Bytes, weight: float, total: Floats) -> float:
    """Add the values, weighed; returns the sum of their squares. Those of a block are counted as integers."""
    squares = 0.0
    for number in range(len(scales)):
        begin = number * BLOCK8
        scale = scales[number]
        place, own = total[begin : begin + BLOCK8], codes[begin : begin + BLOCK8].view(np.int8)
        count = np.int32(0)
        for at in range(BLOCK8):
            code = np.int32(own[at])
            count += code * code
            place[at] += np.float32(code) * scale * weight
        squares += np.float64(count) * np.float64(scale) * np.float64(scale)
    return squares


@compiled(READ_FLOATS, READ_BYTES, FLOAT, FLOATS)
def add4(scales: Floats, codes: Bytes, weight: float, total: Floats) -> float:
    """Add the values, weighed; returns the sum of their squares. Those of a block are counted as integers."""
    squares = 0.0
    for number in range(len(scales)):
        begin = number * BLOCK4
        scale = scales[number]
        place, own = total[begin : begin + BLOCK4], codes[begin // 2 : (begin + BLOCK4) // 2]
        count = np.int32(0)
        for at in range(BLOCK4 // 2):
            first, second = np.int32(own[at] & 0x0F) - 8, np.int32(own[at] >> 4) - 8
            count += first * first + second * second
            place[2 * at] += np.float32(first) * scale * weight
            place[2 * at + 1] += np.float32(second) * scale * weight
        squares += np.float64(count) * np.float64(scale) * np.float64(scale)
    return squares


@compiled(READ_FLOATS, FLOAT, FLOATS)
def add_floats(values: Floats, weight: float, total: Floats) -> float:
    """Add numbers, weighed; returns the sum of their squares, which is NaN or infinite if one of them is."""
    lanes = np.zeros(LANES, np.float64)
    whole = len(values) - len(values) % LANES
    for begin in range(0, whole, LANES):
        place, own = total[begin : begin + LANES], values[begin : begin + LANES]
        for lane in range(LANES):
            place[lane] += own[lane] * weight
            lanes[lane] += np.float64(own[lane]) * np.float64(own[lane])
    for at in range(whole, len(values)):
        total[at] += values[at] * weight
        lanes[0] += np.float64(values[at]) * np.float64(values[at])
    return float(lanes.sum())


@dataclass(frozen=True)
class Loops:
    """What is done with whole blocks of a layout."""

    encode: Callable[[Floats, Floats, Bytes], int]
    decode: Callable[[Floats, Bytes, Floats], None]
    add: Callable[[Floats, Bytes, float, Floats], float]


LOOPS: Mapping[int, Loops] = {
    INT8.per_byte: Loops(encode8, decode8, add8),
    INT4.per_byte: Loops(encode4, decode4, add4),
}
"""By codes in a byte."""
