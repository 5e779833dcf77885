"""What the bytes of a tensor mean. So far `none`: the elements as they lie in memory, little-endian."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from distqat.errors import ConfigError, MessageError


class Codec(Protocol):
    """Turns the elements of a tensor into bytes and back."""

    name: str

    def size(self, elements: int, dtype: torch.dtype) -> int:
        """Bytes that so many elements take."""
        ...

    def encode(self, tensor: torch.Tensor) -> memoryview:
        """Bytes of any tensor, of any shape and stride. Without a copy where the tensor allows."""
        ...

    def decode(self, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A new CPU tensor. Raises MessageError when the length does not fit."""
        ...


class NoneCodec:
    """The elements as they are: exact, and four bytes for an fp32."""

    name = "none"

    def size(self, elements: int, dtype: torch.dtype) -> int:
        return elements * dtype.itemsize

    def encode(self, tensor: torch.Tensor) -> memoryview:
        plain = tensor.detach().to("cpu").contiguous()
        return plain.reshape(-1).view(torch.uint8).numpy().data

    def decode(self, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        if len(data) != self.size(math.prod(shape), dtype):
            raise MessageError(f"{len(data)} bytes for a {dtype} tensor of shape {shape}")
        out = torch.empty(shape, dtype=dtype)
        # Copied, since the bytes belong to a message and a tensor must be writable.
        out.reshape(-1).view(torch.uint8).numpy().data[:] = data
        return out


_CODECS: dict[str, Codec] = {codec.name: codec for codec in (NoneCodec(),)}


def names() -> list[str]:
    """Every codec, for the settings tree and for messages."""
    return sorted(_CODECS)


def find(name: str) -> Codec:
    """The codec of that name; raises ConfigError."""
    try:
        return _CODECS[name]
    except KeyError:
        raise ConfigError(f"unknown codec '{name}'; there are: {', '.join(names())}") from None
