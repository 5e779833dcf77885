"""One attempt at one member: what its streams share, how they wait for each other and how they fail as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import torch

from distqat.averaging import messages
from distqat.averaging.context import LOOK_INTERVAL, Context
from distqat.averaging.group import Group, Member
from distqat.averaging.messages import SliceHeader
from distqat.errors import DistqatError, MessageError, RoundError, StaleError
from distqat.ids import PeerId, short
from distqat.rpc.transport import Stream
from distqat.wire import codecs
from distqat.wire.frames import Chunk

Work = Callable[[], Awaitable[None]]

CODEC = "none"
CHUNK_ELEMENTS = (1 << 20) // torch.float32.itemsize
"""Of a slice; sending one, adding the next and returning the one before go on at the same time."""


class AttemptError(RoundError):
    """An attempt failed; `lost` is the member to blame, if there is one."""

    def __init__(self, reason: str, lost: PeerId | None = None) -> None:
        super().__init__(reason)
        self.lost = lost


class Attempt:
    """What all streams of an attempt share at one member.

    `contribution` [num_elements] is None for a member without samples; `average` [num_elements] fills as chunks come.
    """

    def __init__(self, context: Context, group: Group, contribution: torch.Tensor | None) -> None:
        mine = group.find(context.me)
        if mine is None:
            raise MessageError(f"a group without {short(context.me)}")
        self.context = context
        self.group = group
        self.mine = mine
        self.contribution = contribution
        self.average = torch.empty(context.num_elements)
        self.bytes = 0  # Sent and received so far.
        self.codec = codecs.find(CODEC)
        self.failure: AttemptError | None = None  # The first thing that went wrong; ends everything.
        self._changed = asyncio.Event()  # Set whenever a waiter should look again.

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

    def check(self) -> None:
        """Raise AttemptError if the attempt has failed."""
        if self.failure is not None:
            raise AttemptError(self.failure.reason, self.failure.lost)

    async def together(self, works: Sequence[Work], watch: Work) -> None:
        """Do all the works; `watch` fails when they should end before. Raises AttemptError, the attempt's first.

        No task of the group ever fails: a TaskGroup that fails while it is left would (before Python 3.13) leave its
        parent half cancelled, and no timeout around it would work any more.
        """
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self.guard(watch))
            pending = {group.create_task(self.guard(work)) for work in works}
            while pending and self.failure is None:
                done, _ = await asyncio.wait({watching, *pending}, return_when=asyncio.FIRST_COMPLETED)
                pending -= done
            for task in (watching, *pending):
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

    async def send(self, stream: Stream, chunk: Chunk, payload: memoryview) -> None:
        """One chunk of a slice."""
        frame = messages.frame(SliceHeader(self.group.attempt, self.mine.peer, CODEC, chunk), payload)
        await stream.send(frame)
        self.bytes += len(frame)

    def chunk(self, owner: Member, begin: int) -> Chunk:
        """Where the chunk that begins at that element of the owner's slice lies among its encoded bytes."""
        size = self.codec.size
        return Chunk(size(begin, torch.float32), size(owner.elements, torch.float32))

    def decode(self, frame: bytes | None, sender: Member, chunk: Chunk, elements: int) -> torch.Tensor:
        """The elements of a frame, which must be that chunk from that member. Raises MessageError."""
        if frame is None:
            raise MessageError(f"the stream ended before chunk {chunk.offset} of {chunk.total}")
        header, payload = messages.unframe(SliceHeader, frame)
        self.expect(header, sender, chunk)
        self.bytes += len(frame)
        return self.codec.decode(payload, torch.float32, (elements,))

    def expect(self, header: SliceHeader, sender: Member, chunk: Chunk) -> None:
        """Raise MessageError unless the header is that of this chunk from that member."""
        expected = SliceHeader(self.group.attempt, sender.peer, CODEC, chunk)
        if header != expected:
            raise MessageError(f"expected {expected}, got {header}")


def ranges(elements: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the chunks of a slice."""
    for begin in range(0, elements, CHUNK_ELEMENTS):
        yield begin, min(begin + CHUNK_ELEMENTS, elements)


@asynccontextmanager
async def limit(seconds: float, what: str, lost: PeerId) -> AsyncIterator[None]:
    """Turn a wait that takes longer into an AttemptError that blames a member."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise AttemptError(f"{what} for {seconds:g} s", lost) from None


@contextmanager
def blaming(member: Member) -> Iterator[None]:
    """Turn what goes wrong with a member into an AttemptError that blames it, unless it only passes on a failure."""
    try:
        yield
    except AttemptError:
        raise
    except (RoundError, StaleError) as error:
        raise AttemptError(error.reason) from None
    except DistqatError as error:
        raise AttemptError(f"{short(member.peer)}: {error.reason}", member.peer) from None
