"""Messages with a large payload, cut into frames.

On the wire a frame is the protobuf message `{ Header header = 1; bytes payload = 2; }`, but it is written and read by
hand around the payload, so that a tensor is copied once and not by protobuf again. Knows no header's meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from distqat.errors import MessageError
from distqat.wire.buffers import ALIGNMENT as ALIGNMENT
from distqat.wire.buffers import BUFFERS
from distqat.wire.payload import Payload

CHUNK_BYTES = 2 << 20
"""Payload of one frame; moves fastest from tensor to tensor (docs/design/wire.md)."""

MAX_HEADER_BYTES = 64 << 10
"""A header is small; a larger one is garbage."""

_HEADER_TAG = 0x0A
_PAYLOAD_TAG = 0x12
_HEADER_TAG_BYTE = bytes((_HEADER_TAG,))
_PAYLOAD_TAG_BYTE = bytes((_PAYLOAD_TAG,))


@dataclass(frozen=True)
class Chunk:
    """Where a frame's payload belongs: from byte `offset` of a message of `total` payload bytes."""

    offset: int
    total: int


def join(header: bytes, *payload: bytes | memoryview) -> bytes:
    """One frame from a serialised header and the views that hold its part of the payload. Copies them once."""
    length = sum(len(view) for view in payload)
    if not length:
        return b"".join((_HEADER_TAG_BYTE, _varint(len(header)), header))
    return b"".join((_HEADER_TAG_BYTE, _varint(len(header)), header, _PAYLOAD_TAG_BYTE, _varint(length), *payload))


def split(frame: bytes) -> tuple[memoryview, memoryview]:
    """Header and payload of a frame, without copying them. Raises MessageError."""
    view = memoryview(frame)
    header, rest = _field(view, _HEADER_TAG, "header")
    if len(header) > MAX_HEADER_BYTES:
        raise MessageError(f"a frame header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are taken")
    if not len(rest):
        return header, rest
    payload, rest = _field(rest, _PAYLOAD_TAG, "payload")
    if len(rest):
        raise MessageError(f"{len(rest)} bytes behind the payload of a frame")
    return header, payload


def chunks(payload: Payload, size: int = CHUNK_BYTES) -> Iterator[tuple[Chunk, list[memoryview]]]:
    """Cut a payload into views; an empty one gives one chunk without any."""
    total = len(payload)
    for offset in range(0, max(total, 1), size):
        yield Chunk(offset, total), payload.cut(offset, offset + size)


class Assembler:
    """Puts the chunks of one message together again; sizes and order are checked before anything is allocated."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer: memoryview | None = None  # The payload so far; None before the first chunk.
        self._filled = 0  # Bytes of it that have arrived.

    @property
    def expected(self) -> Chunk | None:
        """Where the next chunk of the message has to lie; None between messages."""
        return Chunk(self._filled, len(self._buffer)) if self._buffer is not None else None

    def add(self, chunk: Chunk, data: memoryview) -> memoryview | None:
        """Take the next chunk; the whole payload once it is complete, else None. Raises MessageError."""
        if chunk.total > self.limit:
            raise MessageError(f"a message of {chunk.total} bytes; at most {self.limit} are taken")
        if chunk.offset != self._filled or chunk.offset + len(data) > chunk.total:
            raise MessageError(
                f"a chunk of {len(data)} bytes at {chunk.offset} of {chunk.total}, where {self._filled} were expected"
            )
        if not len(data) and chunk.total:
            raise MessageError(f"an empty chunk at {chunk.offset} of {chunk.total}")
        if self._buffer is None:
            if len(data) == chunk.total:
                return data
            self._buffer = aligned(chunk.total)
        elif len(self._buffer) != chunk.total:
            raise MessageError(f"a chunk of a message of {chunk.total} bytes within one of {len(self._buffer)}")
        self._buffer[chunk.offset : chunk.offset + len(data)] = data
        self._filled += len(data)
        if self._filled < chunk.total:
            return None
        whole, self._buffer, self._filled = self._buffer, None, 0
        return whole


def aligned(size: int) -> memoryview:
    """So many writable bytes, not cleared, from an address at which torch likes its tensors to start."""
    return BUFFERS.take(size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(view: memoryview, tag: int, name: str) -> tuple[memoryview, memoryview]:
    """The bytes of a length-delimited field at the start of `view`, and what follows it."""
    if not len(view) or view[0] != tag:
        raise MessageError(f"not a frame: no {name} where it belongs")
    length = shift = 0
    for position in range(1, min(len(view), 7)):
        byte = view[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            end = position + 1 + length
            if end > len(view):
                raise MessageError(f"a {name} of {length} bytes in a frame of {len(view)}")
            return view[position + 1 : end], view[end:]
        shift += 7
    raise MessageError(f"not a frame: the length of its {name} has no end")
