"""The codecs as slowly and plainly as they can be: one element after the other, by the text of docs/design/wire.md."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

FLOOR = 2.0**-118


def int8(values: Sequence[float]) -> bytes:
    """Blocks of 256, a byte for each code."""
    scales, codes = _blocks(values, 256, 127)
    return scales + struct.pack(f"<{len(codes)}b", *codes)


def int4(values: Sequence[float]) -> bytes:
    """Blocks of 64, two codes in a byte."""
    scales, codes = _blocks(values, 64, 7)
    nibbles = [code + 8 for code in codes] + [8] * (len(codes) % 2)
    return scales + bytes(nibbles[i] + 16 * nibbles[i + 1] for i in range(0, len(nibbles), 2))


def _blocks(values: Sequence[float], block: int, levels: int) -> tuple[bytes, list[int]]:
    scales, codes = b"", []
    for begin in range(0, len(values), block):
        part = values[begin : begin + block]
        largest = np.float32(max(max(abs(value) for value in part), FLOOR))
        inverse = np.float32(levels) / largest
        scales += struct.pack("<f", largest * np.float32(1 / levels))
        # Python rounds half to even.
        codes += [round(float(np.float32(value) * inverse)) for value in part]
    return scales, codes


def int2(values: Sequence[float]) -> bytes:
    """Blocks of 64, two magnitudes each, four codes in a byte."""
    scales, codes = b"", []
    for begin in range(0, len(values), 64):
        part = [np.float32(value) for value in values[begin : begin + 64]]
        sizes = [abs(value) * np.float32(1 / 64) for value in part]
        bound = _sum(sizes) / np.float32(len(part) / 64) * np.float32(1.5 / 64)
        is_high = [bool(size >= bound) for size in sizes]
        for wanted in (False, True):
            chosen = [size if high is wanted else np.float32(0) for size, high in zip(sizes, is_high, strict=True)]
            count = sum(high is wanted for high in is_high)
            mean = _sum(chosen) / np.float32(max(count, 1) / 64)
            scales += struct.pack("<H", min(struct.unpack("<H", bf16([float(mean)]))[0], 0x7F7F))
        codes += [int(high) + 2 * bool(np.signbit(value)) for high, value in zip(is_high, part, strict=True)]
    codes += [0] * (-len(codes) % 4)
    return scales + bytes(sum(codes[i + k] << 2 * k for k in range(4)) for i in range(0, len(codes), 4))


def _sum(values: Sequence[np.float32]) -> np.float32:
    """Of at most 64, by halves."""
    sums = [*values, *[np.float32(0)] * (64 - len(values))]
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [sums[i] + sums[half + i] for i in range(half)]
    return sums[0]


def bf16(values: Sequence[float]) -> bytes:
    """The upper half of the fp32."""
    out = b""
    for value in values:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        upper, lower = bits >> 16, bits & 0xFFFF
        up = lower > 0x8000 or (lower == 0x8000 and upper % 2 == 1)
        out += struct.pack("<H", upper + up)
    return out


def fp16(values: Sequence[float]) -> bytes:
    """Python can do it."""
    return struct.pack(f"<{len(values)}e", *values)
