"""How int8 and int4 lie in memory: all scales (fp32, little-endian), then all codes; the last block may be short.

    scale = max(largest magnitude of the block, FLOOR) * fl(1 / levels)
    code  = round(value * fl(levels / max(largest magnitude of the block, FLOOR)))    half to even
    value = code * scale

Each of these is one fp32 operation, rounded to nearest, in this order; so every device makes the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

SCALE_BYTES = 4

FLOOR = 2.0**-118
"""A block of smaller numbers is encoded as if it had this one: 1 / scale stays finite, and zeros need no branch."""


@dataclass(frozen=True)
class Layout:
    """Blocks of `block` elements, codes from -levels to levels, `per_byte` of them in a byte.

    One in a byte is in two's complement. Of two in a byte each has 8 added, and the first is the low half; if there is
    no second, its half is that of a zero.
    """

    block: int
    levels: int
    per_byte: int

    def num_blocks(self, elements: int) -> int:
        """The short one is counted."""
        return -(-elements // self.block)

    def scale_bytes(self, elements: int) -> int:
        """Bytes before the first code."""
        return SCALE_BYTES * self.num_blocks(elements)

    def size(self, elements: int) -> int:
        """Bytes of so many elements."""
        return self.scale_bytes(elements) + -(-elements // self.per_byte)

    def cut(self, elements: int, begin: int, end: int) -> tuple[slice, slice]:
        """Where the scales and the codes of elements `begin` to `end` lie among the bytes of `elements`."""
        first = self.scale_bytes(elements)
        scales = slice(self.scale_bytes(begin), self.scale_bytes(end))
        return scales, slice(first + begin // self.per_byte, first - (-end // self.per_byte))

    @property
    def growth(self) -> float:
        """See Codec. No element moves by more than half a scale, and no block is shorter than its largest element."""
        return 1.0 + math.sqrt(self.block) / (2 * self.levels)

    def largest_scale(self, dtype: torch.dtype) -> np.float32:
        """Of the largest number of that type; so that no code can become infinite."""
        return _largest_scale(self.levels, dtype)


@cache
def _largest_scale(levels: int, dtype: torch.dtype) -> np.float32:
    return np.float32(torch.finfo(dtype).max) * np.float32(1 / levels)


INT8 = Layout(block=256, levels=127, per_byte=1)
INT4 = Layout(block=64, levels=7, per_byte=2)
