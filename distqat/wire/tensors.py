"""Named tensors as one payload: a header for each, their encoded bytes one behind the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from distqat.errors import ConfigError, MessageError, TensorError
from distqat.wire import codecs

MAX_DIMENSIONS = 8
"""More than any model here uses; checked before a shape is believed."""

MAX_ELEMENTS = 1 << 48
"""Of a shape, zero sizes counted as one: torch computes strides even of empty tensors, and they must not overflow."""

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.int8,
        torch.bool,
    )
}
"""Element types that may travel, by name."""


@dataclass(frozen=True)
class TensorHeader:
    """What one tensor of a payload is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str
    bytes: int


def encode(tensors: Mapping[str, torch.Tensor], codec: str = "none") -> tuple[list[TensorHeader], memoryview]:
    """Headers and payload of the tensors, in their order. Integer tensors always travel exactly.

    Raises TensorError for an element type that the other side would not take.
    """
    headers: list[TensorHeader] = []
    parts: list[memoryview] = []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise TensorError(f"tensor '{name}' has element type '{dtype}', which does not travel")
        used = codecs.find(codec if tensor.is_floating_point() else "none")
        data = used.encode(tensor) if tensor.numel() else memoryview(b"")
        headers.append(TensorHeader(name, dtype, tuple(tensor.shape), used.name, len(data)))
        parts.append(data)
    return headers, parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def decode(headers: Sequence[TensorHeader], payload: memoryview) -> dict[str, torch.Tensor]:
    """New tensors by name. Raises MessageError when headers and payload do not fit together."""
    expected = sum(header.bytes for header in headers)
    if expected != len(payload):
        raise MessageError(f"headers speak of {expected} bytes, the payload has {len(payload)}")
    tensors: dict[str, torch.Tensor] = {}
    offset = 0
    for header in headers:
        if header.name in tensors:
            raise MessageError(f"tensor '{header.name}' is there twice")
        tensors[header.name] = _decode_one(header, payload[offset : offset + header.bytes])
        offset += header.bytes
    return tensors


def _decode_one(header: TensorHeader, data: memoryview) -> torch.Tensor:
    dtype = DTYPES.get(header.dtype)
    if dtype is None:
        raise MessageError(f"tensor '{header.name}' has element type '{header.dtype}', which is not taken")
    if len(header.shape) > MAX_DIMENSIONS:
        raise MessageError(f"tensor '{header.name}' has {len(header.shape)} dimensions")
    if min(header.shape, default=0) < 0 or math.prod(max(size, 1) for size in header.shape) > MAX_ELEMENTS:
        raise MessageError(f"tensor '{header.name}' has the shape {header.shape}, which is no tensor's")
    try:
        codec = codecs.find(header.codec)
    except ConfigError as error:
        raise MessageError(f"tensor '{header.name}': {error.reason}") from None
    if codec.size(math.prod(header.shape), dtype) != len(data):
        raise MessageError(f"tensor '{header.name}' of shape {header.shape} does not take {len(data)} bytes")
    return codec.decode(data, dtype, header.shape)
