"""The memory that codecs work in and fill, and copies between element types."""

from __future__ import annotations

import math
import threading

import numpy as np
import torch

from distqat.wire.buffers import LARGE
from distqat.wire.frames import aligned

CHUNK = 1 << 18
"""Elements that go through all steps of a kernel before the next ones do; a multiple of every block.

Smaller chunks pay more for calls, larger ones gain nothing and leave the cache.
"""

SERIAL = 31 << 10
"""Elements of one torch operation. From 32768 on torch takes more threads, and these belong to the computation."""

MOST_BLOCKS = CHUNK // 64
MOST_OF_BLOCK = 256

HUGE = LARGE
"""Bytes of a tensor whose memory is used again; torch's own is four times as slow to fill for the first time."""


class Scratch(threading.local):
    """4 MiB at most for each thread that encodes or decodes, while it lives. What is in it lasts for one chunk."""

    def __init__(self) -> None:
        self.block = np.empty(CHUNK, np.float32)  # Of who makes values to be encoded, and of `add_decoded`.
        self.source = torch.empty(CHUNK)
        self.values = np.empty(CHUNK, np.float32)
        self.scales = np.empty(MOST_BLOCKS, np.float32)
        self.last = np.empty(MOST_OF_BLOCK, np.float32)
        self.codes = np.empty(CHUNK, np.uint8)
        self.half_bytes = np.empty(2 * CHUNK, np.uint8)
        self.halves = torch.from_numpy(self.half_bytes).view(torch.int16)


SCRATCH = Scratch()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A new CPU tensor, not cleared, at an address where torch would put it."""
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(aligned(size), dtype=dtype).view(shape)


def convert(source: torch.Tensor, out: torch.Tensor) -> None:
    """Copy [num_elements] into another element type, on this thread alone."""
    if len(source) <= SERIAL:
        out.copy_(source)
        return
    for part, place in zip(torch.split(source, SERIAL), torch.split(out, SERIAL), strict=True):
        place.copy_(part)
