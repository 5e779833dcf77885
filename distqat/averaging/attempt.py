"""One attempt at one member: what its streams share, how they wait for each other and how they fail as one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import torch

from distqat.averaging import messages
from distqat.averaging.blame import AttemptError
from distqat.averaging.context import LOOK_INTERVAL, Context
from distqat.averaging.contribution import Contribution
from distqat.averaging.group import Group, Member
from distqat.averaging.messages import SliceHeader
from distqat.averaging.outer import OuterState
from distqat.averaging.waits import LEAST_RATE
from distqat.errors import MessageError
from distqat.ids import PeerId, short
from distqat.rpc.transport import Stream
from distqat.wire import codecs
from distqat.wire.codecs.codec import Codec
from distqat.wire.frames import Chunk, aligned

Work = Callable[[], Awaitable[None]]

CHUNK_BYTES = 1 << 20
"""Encoded; sending a chunk of a slice, adding the next and returning the one before go on at the same time."""

LEAST_CHUNK_BYTES = 16 << 10
"""Shorter ones would cost more for their messages than for their bytes."""

TURN = 0.5
"""Share of the wait for the next chunk that all streams of a member may take for a chunk each."""


class Attempt:
    """What all streams of an attempt share at one member.

    `payload` is the whole average, encoded; it fills as chunks come. A member without samples has no contribution.
    """

    def __init__(self, context: Context, group: Group, contribution: Contribution | None, state: OuterState) -> None:
        mine = group.find(context.me)
        if mine is None:
            raise MessageError(f"a group without {short(context.me)}")
        self.context = context
        self.group = group
        self.mine = mine
        # Of one that is not taken this time, its owner counts no samples.
        self.contribution = contribution if mine.samples else None
        self.state = state
        self.codec = codecs.find(group.codec)
        self.elements = group.members[-1].end
        self.payload = aligned(self.codec.size(self.elements, torch.float32))
        self.averaged: deque[tuple[int, int]] = deque()  # Chunks of the payload that are new, as begin and end.
        self.bytes = 0  # Sent and received so far.
        self.failure: AttemptError | None = None  # The first thing that went wrong; ends everything.
        self._changed = asyncio.Event()  # Set whenever a waiter should look again.
        self._grown = asyncio.Event()  # Set when a chunk was averaged.

    def fail(self, error: AttemptError) -> None:
        """End the attempt here; only the first reason counts."""
        if self.failure is None:
            self.failure = error
            self.wake()

    def wake(self) -> None:
        """Something that others may wait for has changed."""
        self._changed.set()

    async def until_changed(self, seconds: float | None = None) -> None:
        """Wait until somebody says `wake`, at most so long. Raises AttemptError if the attempt has failed by then."""
        self.check()
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self.check()

    def came(self, bounds: tuple[int, int]) -> None:
        """A chunk of the average is in the payload."""
        self.averaged.append(bounds)
        self._grown.set()

    async def next_averaged(self) -> tuple[int, int]:
        """Begin and end of a chunk of the average that is new."""
        while not self.averaged:
            self._grown.clear()
            await self._grown.wait()
        return self.averaged.popleft()

    def check(self) -> None:
        """Raise AttemptError if the attempt has failed."""
        if self.failure is not None:
            raise AttemptError(self.failure.reason, self.failure.lost)

    async def together(self, works: Sequence[Work], *watches: Work) -> None:
        """Do all the works; `watches` go on beside them, and may fail to end them. Raises AttemptError, the first.

        No task of the group ever fails: a TaskGroup that fails while it is left would (before Python 3.13) leave its
        parent half cancelled, and no timeout around it would work any more.
        """
        async with asyncio.TaskGroup() as group:
            watching = {group.create_task(self.guard(watch)) for watch in watches}
            pending = {group.create_task(self.guard(work)) for work in works}
            while pending and self.failure is None:
                done, _ = await asyncio.wait(watching | pending, return_when=asyncio.FIRST_COMPLETED)
                pending -= done
            for task in watching | pending:
                task.cancel()
        self.check()

    async def guard(self, work: Work) -> None:
        """Do it; if it fails, so does the attempt."""
        try:
            await work()
        except AttemptError as error:
            self.fail(error)

    async def watch_members(self) -> None:
        """Fail as soon as the directory loses a member that it had, or when the attempt fails elsewhere."""
        seen: set[PeerId] = set()
        while True:
            live = {sibling.peer for sibling in self.context.siblings()}
            seen |= live
            gone = [member.peer for member in self.group.members if member.peer in seen - live]
            if gone:
                raise AttemptError(f"{short(gone[0])} is not alive any more", gone[0])
            await self.until_changed(LOOK_INTERVAL)

    async def watch_failure(self) -> None:
        """Fail when the attempt fails elsewhere."""
        while True:
            await self.until_changed()

    def ranges(self, owner: Member) -> Iterator[tuple[int, int]]:
        """Begin and end of the chunks of the owner's slice, among all elements; about equally long."""
        block = self.codec.block
        most = chunk_elements(self.codec, len(self.group.members), self.context.waits.progress)
        number = -(-owner.elements // most)
        size = max(1, -(-owner.elements // (max(1, number) * block))) * block
        for begin in range(owner.begin, owner.end, size):
            yield begin, min(begin + size, owner.end)

    def frame(self, chunk: Chunk, payload: Sequence[memoryview]) -> bytes:
        """One chunk of a slice from this member."""
        return messages.frame(SliceHeader(self.group.attempt, self.mine.peer, self.group.codec, chunk), *payload)

    async def send(self, stream: Stream, frame: bytes) -> None:
        """Send a frame; its end may still be leaving when this returns."""
        await stream.send(frame, more=True)
        self.bytes += len(frame)

    def chunk(self, owner: Member, begin: int) -> Chunk:
        """Where the chunk that begins at that element lies among the encoded bytes of the owner's slice."""
        size = self.codec.size
        return Chunk(size(begin - owner.begin, torch.float32), size(owner.elements, torch.float32))

    def unframe(self, frame: bytes | None, sender: Member, owner: Member, bounds: tuple[int, int]) -> memoryview:
        """The payload of a frame, which must be that chunk of the owner's slice. Raises MessageError."""
        if frame is None:
            chunk = self.chunk(owner, bounds[0])
            raise MessageError(f"the stream ended before chunk {chunk.offset} of {chunk.total}")
        header, payload = messages.unframe(SliceHeader, frame)
        self.expect(header, payload, sender, owner, bounds)
        return payload

    def expect(
        self, header: SliceHeader, payload: memoryview, sender: Member, owner: Member, bounds: tuple[int, int]
    ) -> None:
        """Raise MessageError unless this is that chunk of the owner's slice, from that member and of the right size."""
        begin, end = bounds
        self.expect_header(header, sender, self.chunk(owner, begin))
        size = self.codec.size(end - begin, torch.float32)
        if len(payload) != size:
            raise MessageError(f"a chunk of {len(payload)} bytes where {size} were expected")
        self.bytes += len(payload)

    def store(self, part: memoryview, bounds: tuple[int, int]) -> None:
        """Put an averaged chunk where it belongs. Raises MessageError when it is not finite."""
        offset = 0
        for place in self.codec.cut(self.payload, self.elements, *bounds):
            place[:] = part[offset : offset + len(place)]
            offset += len(place)
        if not self.codec.is_sound(self.payload, self.elements, *bounds):
            raise MessageError("an average that holds NaN or infinity")
        self.came(bounds)

    def expect_header(self, header: SliceHeader, sender: Member, chunk: Chunk) -> None:
        """Raise MessageError unless the header is that of this chunk from that member."""
        expected = SliceHeader(self.group.attempt, sender.peer, self.group.codec, chunk)
        if header != expected:
            raise MessageError(f"expected {expected}, got {header}")


def chunk_elements(codec: Codec, members: int, progress: float) -> int:
    """Elements that a chunk has at most: whole blocks of the codec, the same at all members.

    CHUNK_BYTES of its bytes, or fewer in a large group. There a link carries the chunks of many streams in turn, to
    every other member a contribution to its slice and the average of the own one. An owner waits so many seconds of
    `progress` for the next chunk of one of them, and must get it in time even over the slowest link that takes part.
    """
    turn = TURN * progress * LEAST_RATE / max(1, 2 * (members - 1))
    size = min(CHUNK_BYTES, max(LEAST_CHUNK_BYTES, int(turn)))
    many = 1 << 16
    blocks = size * many // (codec.size(many, torch.float32) * codec.block)
    return max(1, blocks) * codec.block


@asynccontextmanager
async def limit(seconds: float, what: str, lost: PeerId) -> AsyncIterator[None]:
    """Turn a wait that takes longer into an AttemptError that blames a member."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise AttemptError(f"{what} for {seconds:g} s", lost) from None
