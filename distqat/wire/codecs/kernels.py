"""int8 and int4 on a CPU: chunk by chunk through `loops`, on this thread alone, while others run.

Bytes may lie at any address, so scales are worked with in scratch memory. A short last block goes through a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from distqat.wire.codecs.codec import Bytes, Floats
from distqat.wire.codecs.layout import Layout
from distqat.wire.codecs.loops import LOOPS
from distqat.wire.codecs.memory import CHUNK, SCRATCH, convert

INFINITY = 0x7F800000
"""Bits of infinity in fp32; those of NaN are larger."""


def encode(values: torch.Tensor, scales: Bytes, codes: Bytes, layout: Layout) -> bool:
    """Write the bytes of a CPU tensor [num_elements]. False if one of them is NaN or infinite."""
    for begin in range(0, len(values), CHUNK):
        part = values[begin : begin + CHUNK]
        if part.dtype != torch.float32:
            part = SCRATCH.source[: len(part)]
            convert(values[begin : begin + CHUNK], part)
        of_scales, of_codes = _places(layout, begin, len(part))
        if not encode_floats(part.numpy(), scales[of_scales], codes[of_codes], layout):
            return False
    return True


def encode_floats(values: Floats, scales: Bytes, codes: Bytes, layout: Layout) -> bool:
    """The same of fp32 values that are there as an array."""
    loop = LOOPS[layout.per_byte].encode
    for begin, end, whole in _chunks(len(values), layout):
        of_scales, of_codes = _places(layout, begin, end - begin)
        factors = SCRATCH.scales[: layout.num_blocks(end - begin)]
        place, blocks = codes[of_codes], layout.num_blocks(whole - begin)
        worst = loop(values[begin:whole], factors[:blocks], place[: (whole - begin) // layout.per_byte])
        if whole < end:
            last, bytes = SCRATCH.last[: layout.block], SCRATCH.codes[: layout.block // layout.per_byte]
            last[: end - whole], last[end - whole :] = values[whole:end], 0.0
            worst = max(worst, loop(last, factors[blocks:], bytes))
            rest = place[(whole - begin) // layout.per_byte :]
            rest[:] = bytes[: len(rest)]
        if worst >= INFINITY:
            return False
        scales[of_scales] = factors.view(np.uint8)
    return True


def decode(scales: Bytes, codes: Bytes, out: torch.Tensor, layout: Layout) -> bool:
    """Fill a CPU tensor [num_elements]. False if there is a scale that no tensor of its element type has."""
    if out.dtype == torch.float32:
        return decode_floats(scales, codes, out.numpy(), layout)
    for begin in range(0, len(out), CHUNK):
        part = out[begin : begin + CHUNK]
        values = SCRATCH.source[: len(part)]
        of_scales, of_codes = _places(layout, begin, len(part))
        if not decode_floats(scales[of_scales], codes[of_codes], values.numpy(), layout, part.dtype):
            return False
        convert(values, part)
    return True


def decode_floats(scales: Bytes, codes: Bytes, out: Floats, layout: Layout, dtype: torch.dtype = torch.float32) -> bool:
    """Fill an array. False if there is a scale that no tensor of this element type has."""
    loop = LOOPS[layout.per_byte].decode
    for begin, end, whole in _chunks(len(out), layout):
        of_scales, of_codes = _places(layout, begin, end - begin)
        factors, place, blocks = _factors(scales[of_scales]), codes[of_codes], layout.num_blocks(whole - begin)
        if not _are_sound(factors, layout, dtype):
            return False
        loop(factors[:blocks], place[: (whole - begin) // layout.per_byte], out[begin:whole])
        if whole < end:
            last = SCRATCH.last[: layout.block]
            loop(factors[blocks:], _last(place[(whole - begin) // layout.per_byte :], layout), last)
            out[whole:end] = last[: end - whole]
    return True


def add(scales: Bytes, codes: Bytes, weight: float, total: Floats, layout: Layout) -> float:
    """Add what is decoded, weighed; returns the sum of its squares. With these scales no code becomes infinite."""
    loop, squares = LOOPS[layout.per_byte].add, 0.0
    for begin, end, whole in _chunks(len(total), layout):
        of_scales, of_codes = _places(layout, begin, end - begin)
        factors, place, blocks = _factors(scales[of_scales]), codes[of_codes], layout.num_blocks(whole - begin)
        squares += loop(factors[:blocks], place[: (whole - begin) // layout.per_byte], weight, total[begin:whole])
        if whole < end:
            last = SCRATCH.last[: layout.block]
            last[: end - whole], last[end - whole :] = total[whole:end], 0.0
            data = _last(place[(whole - begin) // layout.per_byte :], layout)
            if layout.per_byte == 2 and (end - whole) % 2:
                # What stands where there is no second element is not added, nor counted.
                data[(end - whole) // 2] = data[(end - whole) // 2] & 0x0F | ZERO << 4
            squares += loop(factors[blocks:], data, weight, last)
            total[whole:end] = last[: end - whole]
    return squares


ZERO = 8
"""A half of a byte that stands for no element."""


def _chunks(elements: int, layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Begin and end of each chunk, and where its whole blocks end."""
    for begin in range(0, elements, CHUNK):
        end = min(begin + CHUNK, elements)
        yield begin, end, end - (end - begin) % layout.block


def _places(layout: Layout, begin: int, elements: int) -> tuple[slice, slice]:
    """Where the scales and the codes of a chunk lie among the scales and the codes of all."""
    end = begin + elements
    return (
        slice(layout.scale_bytes(begin), layout.scale_bytes(end)),
        slice(begin // layout.per_byte, -(-end // layout.per_byte)),
    )


def _factors(scales: Bytes) -> Floats:
    """The scales of a chunk, at an address of their own."""
    factors = SCRATCH.scales[: len(scales) // SCRATCH.scales.itemsize]
    factors.view(np.uint8)[:] = scales
    return factors


def _are_sound(factors: Floats, layout: Layout, dtype: torch.dtype) -> bool:
    """As integers they are compared: so NaN, infinity and negative numbers are too large as well."""
    return bool(np.maximum.reduce(factors.view(np.uint32)) <= layout.largest_scale(dtype).view(np.uint32))


def _last(codes: Bytes, layout: Layout) -> Bytes:
    """The codes of a short block, filled up with zeros."""
    whole = SCRATCH.codes[: layout.block // layout.per_byte]
    whole[: len(codes)], whole[len(codes) :] = codes, ZERO | ZERO << 4 if layout.per_byte == 2 else 0
    return whole
