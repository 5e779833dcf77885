"""`int8` and `int4`: blocks of elements, each with a scale of its own, and small integers that count in it."""

from __future__ import annotations

import math

import numpy as np
import torch

from distqat.errors import MessageError, TensorError
from distqat.wire.codecs import device as on_device
from distqat.wire.codecs import kernels
from distqat.wire.codecs.codec import CPU, Bytes, Floats, check_float, check_length, flat, from_bytes, refuse, to_device
from distqat.wire.codecs.layout import Layout
from distqat.wire.codecs.memory import empty
from distqat.wire.codecs.sums import add_decoded


class BlockCodec:
    """int8: 1.016 bytes for each element; int4: 0.5625. NaN and infinity do not pass."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self.block = layout.block
        self.growth = layout.growth

    def size(self, elements: int, dtype: torch.dtype) -> int:
        """See Codec."""
        return self.layout.size(elements)

    def encode(self, tensor: torch.Tensor) -> memoryview:
        """See Codec."""
        out = np.empty(self.layout.size(tensor.numel()), np.uint8).data
        self.encode_into(tensor, out)
        return out

    def encode_into(self, tensor: torch.Tensor, out: memoryview) -> None:
        """See Codec."""
        check_float(self.name, tensor.dtype, TensorError)
        data = from_bytes(out)
        if tensor.device.type == CPU.type:
            split = self.layout.scale_bytes(tensor.numel())
            is_finite = kernels.encode(flat(tensor), data[:split], data[split:], self.layout)
        else:
            torch.from_numpy(data).copy_(on_device.encode(flat(tensor), self.layout))
            is_finite = bool(np.isfinite(self._scales(data, tensor.numel())).all())
        if not is_finite:
            refuse(self.name, tensor, torch.finfo(tensor.dtype).max)

    def decode(
        self, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
    ) -> torch.Tensor:
        """See Codec."""
        elements = math.prod(shape)
        check_float(self.name, dtype, MessageError)
        check_length(data, self.layout.size(elements), dtype, shape)
        source = from_bytes(data)
        if device.type == CPU.type:
            out = empty(shape, dtype)
            split = self.layout.scale_bytes(elements)
            is_sound = kernels.decode(source[:split], source[split:], out.view(-1), self.layout)
        else:
            scales = self._scales(source, elements).view(np.uint32)
            is_sound = int(scales.max(initial=0)) <= int(self.layout.largest_scale(dtype).view(np.uint32))
            out = on_device.decode(to_device(source, device), elements, self.layout).to(dtype).view(shape)
        if not is_sound:
            raise self._unsound(dtype)
        return out

    def cut(self, data: memoryview, elements: int, begin: int, end: int) -> list[memoryview]:
        """See Codec."""
        scales, codes = self.layout.cut(elements, begin, end)
        return [data[scales], data[codes]]

    def encode_part(self, values: Floats, data: memoryview, elements: int, begin: int) -> None:
        """See Codec."""
        scales, codes = self.layout.cut(elements, begin, begin + len(values))
        out = from_bytes(data)
        if not kernels.encode_floats(values, out[scales], out[codes], self.layout):
            refuse(self.name, torch.from_numpy(values), torch.finfo(torch.float32).max)

    def decode_part(self, data: memoryview, elements: int, begin: int, out: Floats) -> None:
        """See Codec."""
        scales, codes = self.layout.cut(elements, begin, begin + len(out))
        source = from_bytes(data)
        if not kernels.decode_floats(source[scales], source[codes], out, self.layout):
            raise self._unsound(torch.float32)

    def add_part(self, data: memoryview, elements: int, begin: int, weight: float, total: Floats) -> float:
        """See Codec. Where a number may become infinite it is decoded first, and looked at then."""
        if not self.is_sound(data, elements, begin, begin + len(total)):
            return add_decoded(self, data, elements, begin, weight, total)
        scales, codes = self.layout.cut(elements, begin, begin + len(total))
        source = from_bytes(data)
        return kernels.add(source[scales], source[codes], weight, total, self.layout)

    def is_sound(self, data: memoryview, elements: int, begin: int, end: int) -> bool:
        """See Codec. Smaller than `decode` takes: so a code that is never written cannot make a number infinite."""
        scales, _ = self.layout.cut(elements, begin, end)
        largest = np.maximum.reduce(np.frombuffer(bytes(data[scales]), np.uint32), initial=0)
        return int(largest) <= int((self.layout.largest_scale(torch.float32) / 2).view(np.uint32))

    def _unsound(self, dtype: torch.dtype) -> MessageError:
        return MessageError(f"codec {self.name}: a scale that no finite {dtype} tensor has")

    def _scales(self, data: Bytes, elements: int) -> Floats:
        """Copied, since bytes may lie at any address."""
        return np.frombuffer(data[: self.layout.scale_bytes(elements)].tobytes(), np.float32)
