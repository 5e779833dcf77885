"""The side that gives: what its committed state consists of, chunks of it, and averages of the latest rounds.

A committed state never changes, so nothing is locked while rounds and training go on. A state that somebody fetches is
held for a while although newer ones follow, `MOST_SHOWN` of them at most; they share what no round has touched.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from distqat.averaging import messages
from distqat.averaging.context import Context
from distqat.averaging.kept import Kept, Shelf
from distqat.averaging.outer import OuterState, Part
from distqat.averaging.state import snapshot
from distqat.averaging.state.messages import (
    AWAIT,
    DESCRIBE,
    FETCH,
    REPLAY,
    SERVICE,
    Await,
    Describe,
    Fetch,
    KeptRound,
    News,
    Replay,
    ReplayHeader,
)
from distqat.averaging.state.snapshot import Manifest
from distqat.errors import DeadlineError, MessageError, OverloadedError, RefusedError, StaleError
from distqat.ids import short
from distqat.rpc.transport import Caller, Service, Stream
from distqat.wire import frames
from distqat.wire.payload import Payload

MOST_SHOWN = 2
"""States that are held for those who fetch them."""

MOST_STREAMS = 8
"""Streams that are served at the same time."""

AT_ONCE = 16
"""Chunks that are hashed in one piece of work, so that training hardly waits for it."""

AWAIT_SECONDS = 5.0
"""After which who waits for news is told that there are none."""


class Holder(Protocol):
    """Where committed state is looked up; `committed.Committed` is one."""

    @property
    def outer(self) -> OuterState | None:
        """The latest; None before the first."""
        ...

    @property
    def kept(self) -> Shelf:
        """Averages of the latest rounds."""
        ...

    async def wait_other(self, digest: str) -> None:
        """Until a state of another digest is committed."""
        ...


@dataclass(frozen=True, eq=False)
class _Shown:
    """A state that was described."""

    manifest: Manifest
    parts: tuple[Payload, ...]
    until: asyncio.TimerHandle


class Donor:
    """What one sibling gives to others."""

    def __init__(self, context: Context, committed: Holder) -> None:
        self.context = context
        self.committed = committed
        self._shown: OrderedDict[str, _Shown] = OrderedDict()  # By digest, the one that was asked for last at the end.
        self._hashes: dict[str, bytes] = {}  # Of the chunks of parts that are shown, by the digest of the part.
        self._hashing = asyncio.Lock()  # Held while hashes are worked out: for whom they are is of no matter.
        self._num_streams = 0

    def __repr__(self) -> str:
        return f"<Donor of {self.committed.outer}, {len(self._shown)} states shown, {self._num_streams} streams>"

    def service(self) -> Service:
        """What a server answers for it."""
        streams = {FETCH.name: self.fetch, REPLAY.name: self.replay}
        return Service(SERVICE, {DESCRIBE.name: self.describe, AWAIT.name: self.tell}, streams)

    def close(self) -> None:
        """Hold no state any more."""
        for shown in self._shown.values():
            shown.until.cancel()
        self._shown.clear()

    async def describe(self, request: bytes, caller: Caller) -> bytes:
        """The manifest of the latest state."""
        asked = messages.decode(Describe, request)
        self.context.check(asked.run, asked.stage)
        self._state(asked.round)
        async with self._hashing:
            # What is committed by now, not when the asking began.
            state = self._state(asked.round)
            if state.digest in self._shown:
                manifest = self._shown[state.digest].manifest
            else:
                hashes = [await self._hash(part) for part in state.parts]
                manifest = snapshot.manifest(state, hashes, snapshot.CHUNK_BYTES)
            self._show(manifest, tuple(snapshot.payload(part) for part in state.parts))
            self._forget_hashes(state)
        return messages.encode(manifest)

    async def tell(self, request: bytes, caller: Caller) -> bytes:
        """What is committed, as soon as it is another state than the asker's, or after a while."""
        asked = messages.decode(Await, request)
        self.context.check(asked.run, asked.stage)
        self._state(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(AWAIT_SECONDS):
                await self.committed.wait_other(asked.digest)
        state = self._state(0)
        return messages.encode(News(state.round, state.digest))

    async def fetch(self, stream: Stream, caller: Caller) -> None:
        """Chunks, each as it is asked for."""
        with self._stream():
            while (request := await self.next_message(stream)) is not None:
                asked = messages.decode(Fetch, request)
                self.context.check(asked.run, asked.stage)
                shown = self._find(asked.digest)
                if not shown.manifest.has(asked.chunk):
                    raise MessageError(f"{short(self.context.me)} has no {asked.chunk} of state {asked.digest[:8]}")
                begin, end = shown.manifest.bounds(asked.chunk)
                await self._send(stream, messages.frame(asked.chunk, *shown.parts[asked.chunk.part].cut(begin, end)))

    async def replay(self, stream: Stream, caller: Caller) -> None:
        """The averages of the rounds after a state, if they are all here."""
        with self._stream():
            request = await self.next_message(stream)
            if request is None:
                raise MessageError("a stream without a message")
            asked = messages.decode(Replay, request)
            self.context.check(asked.run, asked.stage)
            latest, rounds = self._state(asked.round), self.committed.kept.since(asked.round, asked.digest)
            if not rounds or rounds[-1].digest != latest.digest:
                raise StaleError(f"{short(self.context.me)} does not keep the rounds from {asked.round} on")
            for kept in rounds:
                await self._send_round(stream, kept)

    async def _send_round(self, stream: Stream, kept: Kept) -> None:
        said: KeptRound | None = KeptRound(kept.round, kept.before, kept.digest, kept.members, kept.codec, kept.origins)
        for chunk, views in frames.chunks(Payload([kept.payload]), snapshot.CHUNK_BYTES):
            await self._send(stream, messages.frame(ReplayHeader(said, chunk), *views))
            said = None

    async def _hash(self, part: Part) -> bytes:
        """Of its chunks; worked out once, a few at a time."""
        if part.digest not in self._hashes:
            data, size, found = snapshot.payload(part), snapshot.CHUNK_BYTES, b""
            for first in range(0, snapshot.num_chunks(len(data), size), AT_ONCE):
                found += await self.context.work(partial(snapshot.hashes, data, size, first, AT_ONCE))
            self._hashes[part.digest] = found
        return self._hashes[part.digest]

    def _show(self, manifest: Manifest, parts: tuple[Payload, ...]) -> None:
        """Hold the state for a while; the one that was not asked for the longest makes room."""
        hold = asyncio.get_running_loop().call_later(self.context.waits.join, self._drop, manifest.digest)
        self._drop(manifest.digest)
        self._shown[manifest.digest] = _Shown(manifest, parts, hold)
        while len(self._shown) > MOST_SHOWN:
            self._drop(next(iter(self._shown)))

    def _drop(self, digest: str) -> None:
        shown = self._shown.pop(digest, None)
        if shown is not None:
            shown.until.cancel()

    def _forget_hashes(self, state: OuterState) -> None:
        """Those of parts that are no part of the latest state that was described."""
        parts = {part.digest for part in state.parts}
        self._hashes = {digest: found for digest, found in self._hashes.items() if digest in parts}

    def _find(self, digest: str) -> _Shown:
        """A state that was described; it is held on. Raises StaleError."""
        shown = self._shown.get(digest)
        if shown is None:
            raise StaleError(f"{short(self.context.me)} does not hold the state {digest[:8]} any more")
        self._show(shown.manifest, shown.parts)
        return shown

    def _state(self, least: int) -> OuterState:
        """What is committed here. Raises RefusedError without it, StaleError if it has fewer rounds than asked for."""
        state = self.committed.outer
        if state is None:
            raise RefusedError(f"{short(self.context.me)} has no committed state yet")
        if state.round < least:
            raise StaleError(f"{short(self.context.me)} has committed {state.round} rounds, fewer than {least}")
        return state

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if self._num_streams >= MOST_STREAMS:
            raise OverloadedError(f"{short(self.context.me)} gives state to {MOST_STREAMS} others already")
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1

    async def next_message(self, stream: Stream) -> bytes | None:
        """What is asked next. Raises DeadlineError when that takes too long."""
        seconds = self.context.waits.answer
        try:
            async with asyncio.timeout(seconds):
                return await stream.receive()
        except TimeoutError:
            raise DeadlineError(f"nothing was asked for {seconds:g} s") from None

    async def _send(self, stream: Stream, frame: bytes) -> None:
        seconds = self.context.waits.answer
        try:
            async with asyncio.timeout(seconds):
                await stream.send(frame)
        except TimeoutError:
            raise DeadlineError(f"nothing was taken for {seconds:g} s") from None
