"""Named tensors as one payload: a header for each, their encoded bytes one behind the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from distqat.errors import ConfigError, MessageError, TensorError
from distqat.wire import codecs
from distqat.wire.codecs import learned
from distqat.wire.codecs.codec import CPU
from distqat.wire.codecs.learned import CodedTensor
from distqat.wire.compression import Compression
from distqat.wire.payload import Payload
from distqat.wire.zstd import compress, decompress

EXACT = "none"
"""The codec that changes nothing."""

Sent = torch.Tensor | CodedTensor
"""What may be sent; what comes out at the other end is a tensor."""

Decode = Callable[[memoryview, torch.dtype, tuple[int, ...], torch.device], torch.Tensor]
"""From bytes to a tensor of that type and shape, on that device. Raises MessageError."""

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
    """Of the payload."""
    raw: int = 0
    """Bytes that the codec made, where zstd came after it; 0: they travel as they are."""


def encode(
    tensors: Mapping[str, Sent],
    codec: str | Mapping[str, str] = EXACT,
    compression: Compression | None = None,
) -> tuple[list[TensorHeader], Payload]:
    """Headers and payload of the tensors, in their order.

    `codec` is that of all tensors, or of each by its name; one that is not named travels exactly, and so do integers
    always. What a boundary has coded has the codec of its form, which must be the one that was asked for.
    Raises TensorError for what the other side would not take, and for NaN and infinity under a lossy codec.
    """
    headers: list[TensorHeader] = []
    parts: list[memoryview] = []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise TensorError(f"tensor '{name}' has element type '{dtype}', which does not travel")
        used = codec_of(name, tensor, codec)
        data = _encode_one(name, tensor, used) if tensor.numel() else memoryview(b"")
        small = compress(data, compression) if compression is not None else None
        raw, data = (len(data), small) if small is not None else (0, data)
        headers.append(TensorHeader(name, dtype, tuple(tensor.shape), used, len(data), raw))
        parts.append(data)
    return headers, Payload(parts)


def _encode_one(name: str, tensor: Sent, codec: str) -> memoryview:
    form = tensor.form.name if isinstance(tensor, CodedTensor) else None
    if form != (codec if learned.form_of(codec) is not None else None):
        raise TensorError(f"tensor '{name}' is to travel as {codec}, and was coded as {form or 'nothing'}")
    return learned.encode(tensor) if isinstance(tensor, CodedTensor) else codecs.find(codec).encode(tensor)


def codec_of(name: str, tensor: Sent, codec: str | Mapping[str, str]) -> str:
    """Codec that a tensor travels with, if these were asked for."""
    if not tensor.dtype.is_floating_point:
        return EXACT
    return codec if isinstance(codec, str) else codec.get(name, EXACT)


def work(tensor: Sent, codec: str) -> int:
    """Bytes that encoding has to touch; 0 where the tensor travels from where it lies."""
    if isinstance(tensor, CodedTensor) or codec != EXACT:
        return tensor.nbytes
    return 0 if tensor.is_contiguous() and tensor.device == CPU else tensor.nbytes


def raw_bytes(headers: Iterable[TensorHeader]) -> int:
    """Bytes of the tensors before zstd, as far as the headers say the truth."""
    return sum(header.raw or header.bytes for header in headers)


def decode(headers: Sequence[TensorHeader], payload: memoryview, device: torch.device = CPU) -> dict[str, torch.Tensor]:
    """Tensors by name, on the device; they may share memory with a payload that can be written to.

    Raises MessageError when headers and payload do not fit together.
    """
    expected = sum(header.bytes for header in headers)
    if expected != len(payload):
        raise MessageError(f"headers speak of {expected} bytes, the payload has {len(payload)}")
    tensors: dict[str, torch.Tensor] = {}
    offset = 0
    for header in headers:
        if header.name in tensors:
            raise MessageError(f"tensor '{header.name}' is there twice")
        tensors[header.name] = _decode_one(header, payload[offset : offset + header.bytes], device)
        offset += header.bytes
    return tensors


def _decode_one(header: TensorHeader, data: memoryview, device: torch.device) -> torch.Tensor:
    dtype = DTYPES.get(header.dtype)
    if dtype is None:
        raise MessageError(f"tensor '{header.name}' has element type '{header.dtype}', which is not taken")
    if len(header.shape) > MAX_DIMENSIONS:
        raise MessageError(f"tensor '{header.name}' has {len(header.shape)} dimensions")
    if min(header.shape, default=0) < 0 or math.prod(max(size, 1) for size in header.shape) > MAX_ELEMENTS:
        raise MessageError(f"tensor '{header.name}' has the shape {header.shape}, which is no tensor's")
    size, read = _reader(header, dtype)
    if size != (header.raw or len(data)):
        raise MessageError(
            f"tensor '{header.name}' of shape {header.shape} does not take {header.raw or len(data)} bytes"
        )
    if header.raw:
        data = decompress(data, header.raw)
    return read(data, dtype, header.shape, device)


def _reader(header: TensorHeader, dtype: torch.dtype) -> tuple[int, Decode]:
    """How many bytes the codec of a tensor makes of it, and how they are read. Raises MessageError."""
    form = learned.form_of(header.codec)
    if form is not None:
        return form.size(header.shape), partial(learned.decode, form)
    try:
        codec = codecs.find(header.codec)
    except ConfigError as error:
        raise MessageError(f"tensor '{header.name}': {error.reason}") from None
    return codec.size(math.prod(header.shape), dtype), codec.decode
