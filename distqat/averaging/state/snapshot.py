"""A committed state as it travels: parts, chunks and their hashes. Pure.

Each fragment is a part of its own: anchor, then momentum, one behind the other, cut into chunks. A round touches a few
fragments only, so most chunks of the state before it are chunks of the state after it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import xxhash

from distqat.averaging.outer import OuterState, Part
from distqat.averaging.spans import Shape
from distqat.errors import MessageError
from distqat.ids import PeerId, StepRef
from distqat.wire import tensors
from distqat.wire.payload import Payload
from distqat.wire.tensors import TensorHeader

CHUNK_BYTES = 1 << 20
"""Of every chunk but the last of a part: small enough to come over a slow link within a wait for progress."""

LEAST_CHUNK_BYTES = 64
MOST_CHUNK_BYTES = 4 << 20
"""Sizes of chunks that are taken from others; a frame of the largest fits into a message."""

HASH_BYTES = 16

ANCHOR = "anchor"
MOMENTUM = "momentum"


@dataclass(frozen=True, order=True)
class ChunkRef:
    """One chunk of a state."""

    part: int
    index: int


@dataclass(frozen=True)
class PartManifest:
    """One fragment of a state."""

    tensors: tuple[TensorHeader, ...]
    """Anchor and momentum."""
    hashes: bytes
    """xxh3-128 of every chunk, one behind the other."""

    @property
    def nbytes(self) -> int:
        """Of both tensors."""
        return sum(header.bytes for header in self.tensors)

    def hash(self, index: int) -> bytes:
        """Of one chunk."""
        return self.hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)]


@dataclass(frozen=True)
class Manifest:
    """A state as its donors describe it; two donors hold the same if their manifests are equal."""

    round: int
    digest: str
    members: tuple[PeerId, ...]
    chunk_bytes: int
    parts: tuple[PartManifest, ...]
    cut: tuple[StepRef, ...] = ()

    def __repr__(self) -> str:
        return f"<Manifest round {self.round} {self.digest[:8]}, {self.num_chunks} chunks>"

    @property
    def num_chunks(self) -> int:
        """Of all parts."""
        return sum(num_chunks(part.nbytes, self.chunk_bytes) for part in self.parts)

    def chunks(self) -> Iterator[ChunkRef]:
        """All of them, in order."""
        for number, part in enumerate(self.parts):
            for index in range(num_chunks(part.nbytes, self.chunk_bytes)):
                yield ChunkRef(number, index)

    def bounds(self, chunk: ChunkRef) -> tuple[int, int]:
        """Its first byte within its part, and one past its last."""
        begin = chunk.index * self.chunk_bytes
        return begin, min(begin + self.chunk_bytes, self.parts[chunk.part].nbytes)

    def hash(self, chunk: ChunkRef) -> bytes:
        """Of one chunk."""
        return self.parts[chunk.part].hash(chunk.index)

    def has(self, chunk: ChunkRef) -> bool:
        """Whether there is such a chunk."""
        if not 0 <= chunk.part < len(self.parts):
            return False
        return 0 <= chunk.index < num_chunks(self.parts[chunk.part].nbytes, self.chunk_bytes)

    def check(self, shapes: Sequence[Shape]) -> None:
        """Raise MessageError unless it describes a state of these fragments: sizes are believed after this only."""
        if not LEAST_CHUNK_BYTES <= self.chunk_bytes <= MOST_CHUNK_BYTES:
            raise MessageError(f"chunks of {self.chunk_bytes} bytes")
        if len(self.parts) != len(shapes):
            raise MessageError(f"a state of {len(self.parts)} fragments where {len(shapes)} were expected")
        for number, (part, shape) in enumerate(zip(self.parts, shapes, strict=True)):
            if part.tensors != headers(shape):
                found = {header.name: (header.shape, header.dtype) for header in part.tensors}
                raise MessageError(f"fragment {number} is not that of this stage: it holds {found}")
            if len(part.hashes) != HASH_BYTES * num_chunks(part.nbytes, self.chunk_bytes):
                raise MessageError(f"{len(part.hashes)} bytes of hashes for the chunks of fragment {number}")


def num_chunks(nbytes: int, chunk_bytes: int) -> int:
    """Chunks of a part of so many bytes; none of an empty one."""
    return -(-nbytes // chunk_bytes)


def headers(shape: Shape) -> tuple[TensorHeader, ...]:
    """The tensors of a fragment."""
    return tuple(
        TensorHeader(name, "float32", (elements,), tensors.EXACT, torch.float32.itemsize * elements)
        for name, elements in ((ANCHOR, shape.num_elements), (MOMENTUM, shape.num_parameters))
    )


def payload(part: Part) -> Payload:
    """The bytes of a fragment, where they lie."""
    return tensors.encode({ANCHOR: part.anchor, MOMENTUM: part.momentum})[1]


def part_of(shape: Shape, data: memoryview) -> Part:
    """The fragment of these bytes, whose memory it shares; its digest is worked out."""
    found = tensors.decode(headers(shape), data)
    return Part.of(found[ANCHOR], found[MOMENTUM])


def hash_of(views: Sequence[memoryview | bytes]) -> bytes:
    """Of a chunk that lies in these views."""
    state = xxhash.xxh3_128()
    for view in views:
        state.update(view)
    return state.digest()


def hashes(data: Payload, chunk_bytes: int, first: int, count: int) -> bytes:
    """Of chunks `first` to `first + count` of a part, as far as there are such."""
    begins = range(first * chunk_bytes, min((first + count) * chunk_bytes, len(data)), chunk_bytes)
    return b"".join(hash_of(data.cut(begin, begin + chunk_bytes)) for begin in begins)


def manifest(state: OuterState, parts: Sequence[bytes], chunk_bytes: int) -> Manifest:
    """The manifest of a state of which these are the hashes, by part."""
    described = tuple(
        PartManifest(headers(part.shape), digests) for part, digests in zip(state.parts, parts, strict=True)
    )
    return Manifest(state.round, state.digest, state.members, chunk_bytes, described, state.cut)
