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
