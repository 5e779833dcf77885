"""`none`: the elements as they lie in memory, little-endian; exact."""

from __future__ import annotations

import math

import numpy as np
import torch

from distqat.wire.codecs.codec import CPU, Floats, as_bytes, check_length, flat, from_bytes, to_device
from distqat.wire.codecs.memory import empty
from distqat.wire.codecs.sums import add_decoded
from distqat.wire.frames import ALIGNMENT

FP32 = torch.float32.itemsize

SIGN = 0x80000000

INFINITY = 0x7F800000
"""Bits of it; those of NaN are larger."""


class NoneCodec:
    """Four bytes for an fp32, two for a bf16; every element type, every value."""

    name = "none"
    block = 1
    growth = 1.0

    def size(self, elements: int, dtype: torch.dtype) -> int:
        """See Codec."""
        return elements * dtype.itemsize

    def encode(self, tensor: torch.Tensor) -> memoryview:
        """See Codec. Shares memory with a contiguous CPU tensor."""
        return as_bytes(flat(tensor).cpu()).data

    def encode_into(self, tensor: torch.Tensor, out: memoryview) -> None:
        """See Codec."""
        from_bytes(out)[:] = as_bytes(flat(tensor).cpu())

    def decode(
        self, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
    ) -> torch.Tensor:
        """See Codec. Shares memory with `data` if that is writable and lies where torch would have put it.

        Elsewhere some operations of torch may round differently, and a pipeline would not equal one process any more.
        """
        check_length(data, self.size(math.prod(shape), dtype), dtype, shape)
        if not data.nbytes:
            return torch.empty(shape, dtype=dtype, device=device)
        source = from_bytes(data)
        if source.flags.writeable and source.ctypes.data % ALIGNMENT == 0:
            return torch.from_numpy(source).view(dtype).view(shape).to(device)
        if device.type != CPU.type:
            return to_device(source, device).view(dtype).view(shape)
        out = empty(shape, dtype)
        as_bytes(out)[:] = source
        return out

    def cut(self, data: memoryview, elements: int, begin: int, end: int) -> list[memoryview]:
        """See Codec."""
        return [data[FP32 * begin : FP32 * end]]

    def encode_part(self, values: Floats, data: memoryview, elements: int, begin: int) -> None:
        """See Codec."""
        from_bytes(data)[FP32 * begin : FP32 * (begin + len(values))] = values.view(np.uint8)

    def decode_part(self, data: memoryview, elements: int, begin: int, out: Floats) -> None:
        """See Codec."""
        out.view(np.uint8)[:] = from_bytes(data)[FP32 * begin : FP32 * (begin + len(out))]

    def add_part(self, data: memoryview, elements: int, begin: int, weight: float, total: Floats) -> float:
        """See Codec."""
        return add_decoded(self, data, elements, begin, weight, total)

    def is_sound(self, data: memoryview, elements: int, begin: int, end: int) -> bool:
        """See Codec."""
        numbers = from_bytes(data)[FP32 * begin : FP32 * end].view(np.uint32)
        # The largest signed integer is the largest positive number, the largest unsigned one the largest negative one.
        return bool(
            np.maximum.reduce(numbers.view(np.int32), initial=0) < INFINITY
            and np.maximum.reduce(numbers, initial=0) < SIGN | INFINITY
        )
