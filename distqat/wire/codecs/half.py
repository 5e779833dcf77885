"""`bf16` and `fp16`: each element rounded to the nearest, half to even; little-endian."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from distqat.errors import MessageError, TensorError
from distqat.wire.codecs.codec import (
    CPU,
    Bytes,
    Floats,
    as_bytes,
    check_float,
    check_length,
    flat,
    from_bytes,
    refuse,
    to_device,
)
from distqat.wire.codecs.memory import CHUNK, SCRATCH, convert, empty
from distqat.wire.codecs.sums import add_decoded

SIGN = 0x8000

HALF = 2
"""Bytes of a number."""


class HalfCodec:
    """Two bytes for each element; NaN, infinity and what would become infinite do not pass."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self._half = dtype
        self.block = 1
        self.growth = 1.0 + torch.finfo(dtype).eps

    def size(self, elements: int, dtype: torch.dtype) -> int:
        """See Codec."""
        return self._half.itemsize * elements

    def encode(self, tensor: torch.Tensor) -> memoryview:
        """See Codec. Shares memory with a contiguous CPU tensor of its own element type."""
        check_float(self.name, tensor.dtype, TensorError)
        values = flat(tensor)
        if not len(values):
            return memoryview(b"")
        if values.dtype == self._half or values.device.type != CPU.type:
            data = as_bytes(values.to(self._half).cpu())
            self._check(data, tensor)
        else:
            data = np.empty(2 * len(values), np.uint8)
            self._round(values, data)
        return data.data

    def encode_into(self, tensor: torch.Tensor, out: memoryview) -> None:
        """See Codec."""
        from_bytes(out)[:] = from_bytes(self.encode(tensor))

    def decode(
        self, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
    ) -> torch.Tensor:
        """See Codec."""
        check_float(self.name, dtype, MessageError)
        check_length(data, self.size(math.prod(shape), dtype), dtype, shape)
        source = from_bytes(data)
        if device.type == CPU.type:
            out = empty(shape, dtype)
            is_sound = self._fill(out.view(-1), source)
        else:
            is_sound = _are_finite(source, self._half, dtype)
            out = to_device(source, device).view(self._half).to(dtype).view(shape)
        if not is_sound:
            raise self._unsound(dtype)
        return out

    def cut(self, data: memoryview, elements: int, begin: int, end: int) -> list[memoryview]:
        """See Codec."""
        return [data[HALF * begin : HALF * end]]

    def encode_part(self, values: Floats, data: memoryview, elements: int, begin: int) -> None:
        """See Codec."""
        self._round(torch.from_numpy(values), from_bytes(data)[HALF * begin : HALF * (begin + len(values))])

    def decode_part(self, data: memoryview, elements: int, begin: int, out: Floats) -> None:
        """See Codec."""
        if not self._fill(torch.from_numpy(out), from_bytes(data)[HALF * begin : HALF * (begin + len(out))]):
            raise self._unsound(torch.float32)

    def add_part(self, data: memoryview, elements: int, begin: int, weight: float, total: Floats) -> float:
        """See Codec."""
        return add_decoded(self, data, elements, begin, weight, total)

    def is_sound(self, data: memoryview, elements: int, begin: int, end: int) -> bool:
        """See Codec."""
        return _are_finite(from_bytes(data)[HALF * begin : HALF * end], self._half, torch.float32)

    def _unsound(self, dtype: torch.dtype) -> MessageError:
        return MessageError(f"codec {self.name}: NaN, infinity or a number that is too large for {dtype}")

    def _round(self, values: torch.Tensor, out: Bytes) -> None:
        """Chunk by chunk, so that what is checked is still in the cache."""
        halves = torch.from_numpy(out).view(self._half)
        for begin in range(0, len(halves), CHUNK):
            end = begin + CHUNK
            convert(values[begin:end], halves[begin:end])
            self._check(out[2 * begin : 2 * end], values)

    def _check(self, data: Bytes, source: torch.Tensor) -> None:
        if not _are_finite(data, self._half, source.dtype):
            refuse(self.name, source, torch.finfo(self._half).max)

    def _fill(self, out: torch.Tensor, source: Bytes) -> bool:
        """The bytes may lie at any address, and no tensor may be made of what cannot be written to: so copied first."""
        halves, copy = SCRATCH.halves.view(self._half), SCRATCH.half_bytes
        for begin in range(0, len(out), CHUNK):
            place, data = out[begin : begin + CHUNK], source[2 * begin : 2 * (begin + CHUNK)]
            copy[: len(data)] = data
            if not _are_finite(copy[: len(data)], self._half, out.dtype):
                return False
            convert(halves[: len(place)], place)
        return True


def _are_finite(data: Bytes, half: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether all of these are finite, both as `half` and as `dtype`."""
    most = most_bits(half, dtype)
    for begin in range(0, len(data), 2 * CHUNK):
        bits = data[begin : begin + 2 * CHUNK].view(np.uint16)
        # The largest positive one is the largest signed integer; the largest negative one the largest unsigned.
        if np.maximum.reduce(bits.view(np.int16)) > most or np.maximum.reduce(bits) > SIGN | most:
            return False
    return True


@cache
def most_bits(half: torch.dtype, dtype: torch.dtype) -> int:
    """Bits of the largest number of type `half` that is finite as `dtype` too: 65504 becomes 65536 as bf16."""
    largest = torch.tensor(min(torch.finfo(half).max, torch.finfo(dtype).max)).to(half)
    if not largest.to(dtype).isfinite():
        largest = torch.nextafter(largest, torch.zeros_like(largest))
    return int(largest.view(torch.int16))
