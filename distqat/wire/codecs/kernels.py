"""int8 and int4 on a CPU: chunk by chunk through numpy, which computes on this thread alone and lets others run.

Plain torch expressions walk through main memory once for each operation, and take three times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from distqat.wire.codecs.codec import Bytes, Floats
from distqat.wire.codecs.layout import FLOOR, Layout
from distqat.wire.codecs.memory import CHUNK, SCRATCH, convert

Offsets = npt.NDArray[np.intp]

INFINITY = 0x7F800000
"""Bits of infinity in fp32. Magnitudes are compared as integers: that is faster, and NaN is the largest of all."""

ROUNDER = 3 << 22
"""1.5 * 2^23: a small number plus this has no bits behind the point. It is rounded, and lies in the lowest byte."""


def encode(values: torch.Tensor, scales: Bytes, codes: Bytes, layout: Layout) -> bool:
    """Write the bytes of a CPU tensor [num_elements]. False if one of them is NaN or infinite."""
    scale = code = 0
    for chunk in _chunks(values):
        largest = _largest(chunk, layout.block)
        if np.maximum.reduce(largest.view(np.int32)) >= INFINITY:
            return False
        np.maximum(largest, FLOOR, out=largest)
        inverse = np.divide(layout.levels, largest, out=SCRATCH.inverse[: len(largest)])
        np.multiply(largest, 1 / layout.levels, out=largest)
        scales[scale : scale + largest.nbytes] = largest.view(np.uint8)
        scale += largest.nbytes
        scaled = _times(chunk, inverse, layout.block, out=SCRATCH.values[: len(chunk)])
        code += (_round if layout.per_byte == 1 else _round_and_pack)(scaled, codes[code:])
    return True


def decode(scales: Bytes, codes: Bytes, out: torch.Tensor, layout: Layout) -> bool:
    """Fill a CPU tensor [num_elements]. False if there is a scale that no tensor of its element type has."""
    scale = code = 0
    most = layout.largest_scale(out.dtype).view(np.uint32)
    for values, fill in _places(out):
        factors = SCRATCH.largest[: layout.num_blocks(len(values))]
        factors.view(np.uint8)[:] = scales[scale : scale + factors.nbytes]
        scale += factors.nbytes
        # As integers: so NaN, infinity and negative numbers are too large as well.
        if np.maximum.reduce(factors.view(np.uint32)) > most:
            return False
        code += (_read if layout.per_byte == 1 else _unpack)(codes[code:], values)
        # Only a code that is never written, such as -128, can make one too large.
        with np.errstate(over="ignore"):
            _times(values, factors, layout.block, out=values)
        if fill is not None:
            convert(torch.from_numpy(values), fill)
    return True


def _chunks(values: torch.Tensor) -> Iterator[Floats]:
    """The elements as fp32: themselves, or each chunk in scratch memory when it is asked for."""
    is_direct = values.dtype == torch.float32
    floats: Floats = (values if is_direct else SCRATCH.source).numpy()
    for begin in range(0, len(values), CHUNK):
        if is_direct:
            yield floats[begin : begin + CHUNK]
        else:
            part = values[begin : begin + CHUNK]
            convert(part, SCRATCH.source[: len(part)])
            yield floats[: len(part)]


def _places(out: torch.Tensor) -> Iterator[tuple[Floats, torch.Tensor | None]]:
    """Where the chunks of `out` are to be computed; beside it, if that is scratch memory, what to fill from there."""
    floats: Floats | None = out.numpy() if out.dtype == torch.float32 else None
    for begin in range(0, len(out), CHUNK):
        if floats is not None:
            yield floats[begin : begin + CHUNK], None
        else:
            part = out[begin : begin + CHUNK]
            yield SCRATCH.values[: len(part)], part


def _largest(chunk: Floats, block: int) -> Floats:
    """The largest magnitude of each block."""
    largest = SCRATCH.largest[: -(-len(chunk) // block)]
    magnitudes = np.abs(chunk, out=SCRATCH.values[: len(chunk)])
    np.maximum.reduceat(magnitudes.view(np.int32), _offsets(block)[: len(largest)], out=largest.view(np.int32))
    return largest


@cache
def _offsets(block: int) -> Offsets:
    """Where the blocks of a chunk begin."""
    return np.arange(0, CHUNK, block)


def _times(values: Floats, factors: Floats, block: int, out: Floats) -> Floats:
    """Each block by its own factor."""
    whole, rest = divmod(len(values), block)
    if whole:
        rows = (whole, block)
        end = whole * block
        np.multiply(values[:end].reshape(rows), factors[:whole, None], out=out[:end].reshape(rows))
    if rest:
        np.multiply(values[-rest:], factors[whole], out=out[-rest:])
    return out


def _round(scaled: Floats, out: Bytes) -> int:
    """Write the nearest integers, half to even, a byte each; returns how many bytes."""
    np.add(scaled, ROUNDER, out=scaled)
    np.copyto(out[: len(scaled)], scaled.view(np.int32), casting="unsafe")
    return len(scaled)


def _round_and_pack(scaled: Floats, out: Bytes) -> int:
    """Write the nearest integers, half to even, each plus 8, two in a byte; returns how many bytes."""
    elements = len(scaled)
    halves = SCRATCH.codes[: elements + elements % 2]
    halves[-1] = 8
    np.add(scaled, ROUNDER + 8, out=scaled)
    np.copyto(halves[:elements], scaled.view(np.int32), casting="unsafe")
    words = halves.view(np.uint16)
    pairs = np.right_shift(words, 4, out=SCRATCH.pairs[: len(words)])
    np.bitwise_or(pairs, words, out=pairs)
    np.copyto(out[: len(pairs)], pairs, casting="unsafe")
    return len(pairs)


def _read(data: Bytes, values: Floats) -> int:
    """Integers, a byte each; returns how many bytes."""
    np.copyto(values, data[: len(values)].view(np.int8))
    return len(values)


def _unpack(data: Bytes, values: Floats) -> int:
    """Integers, each plus 8, two in a byte; returns how many bytes."""
    elements = len(values)
    pairs = SCRATCH.pairs[: -(-elements // 2)]
    halves = SCRATCH.codes[: 2 * len(pairs)]
    words = halves.view(np.uint16)
    np.copyto(pairs, data[: len(pairs)])
    np.left_shift(pairs, 4, out=words)
    np.bitwise_or(words, pairs, out=words)
    np.bitwise_and(words, 0x0F0F, out=words)
    np.subtract(halves, 8, out=halves)
    np.copyto(values, halves[:elements].view(np.int8))
    return len(pairs)
