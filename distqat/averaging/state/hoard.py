"""What an asker has of a state so far: chunks that came, and those that it had before."""

from __future__ import annotations

from functools import partial

from distqat.averaging.context import Context
from distqat.averaging.outer import OuterState, Part
from distqat.averaging.state import snapshot
from distqat.averaging.state.snapshot import HASH_BYTES, ChunkRef, Manifest
from distqat.errors import MessageError, StateError
from distqat.wire.frames import aligned
from distqat.wire.payload import Payload

AT_ONCE = 16
"""Chunks that are compared and copied in one piece of work."""


class Hoard:
    """The bytes of one state. When another state is aimed at, what it shares with the one before stays.

    It takes as much memory as the fragments that have changed, and twice that for the moment of a change of aim.
    """

    def __init__(self, context: Context, own: OuterState | None = None) -> None:
        """`own` is the state that the asker holds, of which parts may still be right."""
        self.context = context
        self.manifest: Manifest | None = None  # What is aimed at; None before the first.
        self.missing: set[ChunkRef] = set()
        self._own = own
        self._buffers: dict[int, memoryview] = {}  # Of each part that is not as the asker has it already.

    def __repr__(self) -> str:
        return f"<Hoard for {self.manifest}, {len(self.missing)} chunks missing>"

    async def aim(self, manifest: Manifest) -> None:
        """Gather this state from now on. Raises MessageError when it is not one of this stage."""
        manifest.check(self.context.shapes)
        before, had = self.manifest, self.missing
        self.manifest, self.missing = manifest, set(manifest.chunks())
        if before is not None and before.chunk_bytes == manifest.chunk_bytes:
            # What came for the state before: the same bytes belong to the same places.
            same = {chunk for chunk in self.missing - had if before.hash(chunk) == manifest.hash(chunk)}
            self.missing -= {chunk for chunk in same if chunk.part in self._buffers}
        else:
            self._buffers.clear()
        if self._own is not None:
            for number, part in enumerate(self._own.parts):
                await self._compare(number, snapshot.payload(part))

    async def _compare(self, number: int, own: Payload) -> None:
        """Chunks of a part that the asker holds already need not come."""
        assert self.manifest is not None
        part, size = self.manifest.parts[number], self.manifest.chunk_bytes
        count = snapshot.num_chunks(part.nbytes, size)
        if number in self._buffers or not count:
            # Either nothing is to come, or some of it is here, and what the asker held was compared before.
            return
        digests = b""
        for first in range(0, count, AT_ONCE):
            digests += await self.context.work(partial(snapshot.hashes, own, size, first, AT_ONCE))
        right = [index for index in range(count) if part.hash(index) == digests[HASH_BYTES * index :][:HASH_BYTES]]
        if len(right) == count:
            self.missing -= {ChunkRef(number, index) for index in right}
            return
        for index in right:
            self.add(ChunkRef(number, index), memoryview(b"".join(own.cut(index * size, (index + 1) * size))))

    def add(self, chunk: ChunkRef, data: memoryview) -> None:
        """Take a chunk. Raises MessageError unless it is what the manifest says."""
        assert self.manifest is not None
        begin, end = self.manifest.bounds(chunk)
        if len(data) != end - begin or snapshot.hash_of([data]) != self.manifest.hash(chunk):
            raise MessageError(f"chunk {chunk.index} of fragment {chunk.part} has another hash than its manifest says")
        if chunk in self.missing:
            self._buffer(chunk.part)[begin:end] = data
            self.missing.discard(chunk)

    async def build(self) -> OuterState:
        """The whole state. Raises StateError if it does not have its digest; then nothing that came is kept."""
        manifest = self.manifest
        assert manifest is not None
        assert not self.missing
        parts = [await self.context.work(partial(self._part, number)) for number in range(len(manifest.parts))]
        state = OuterState.of(parts, manifest.round, manifest.members, manifest.cut)
        if state.digest != manifest.digest:
            self.manifest, self._buffers = None, {}
            raise StateError(f"the state of round {manifest.round} does not match its digest")
        return state

    def _part(self, number: int) -> Part:
        if number not in self._buffers and self._own is not None:
            return self._own.parts[number]
        return snapshot.part_of(self.context.shapes[number], self._buffer(number))

    def _buffer(self, number: int) -> memoryview:
        """Where a part is gathered; allocated with its first chunk, after its size was checked."""
        assert self.manifest is not None
        if number not in self._buffers:
            self._buffers[number] = aligned(self.manifest.parts[number].nbytes)
        return self._buffers[number]
