"""What a member does as the owner of a slice: add the contributions chunk by chunk, send the mean to everyone.

Chunk c is added as soon as chunk c of every contributor is there, in the order of the members. The mean is encoded once
and the same bytes go to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from distqat.aio import Mailbox
from distqat.averaging.attempt import Attempt, limit
from distqat.averaging.blame import AttemptError, blaming
from distqat.averaging.group import Member
from distqat.averaging.messages import SliceHeader
from distqat.averaging.reduce import Reducer
from distqat.errors import RefusedError, RoundError
from distqat.ids import PeerId, short
from distqat.rpc.transport import Stream
from distqat.wire.frames import Chunk

INBOX = 2
"""Chunks of one member that wait to be added."""

KEPT_FRAMES = 4
"""Averaged chunks that are kept as they travel, for those members who take them late; older ones are made again."""

INLINE_ELEMENTS = 1 << 16
"""Elements that are decoded and added on the spot; handing them to a thread would take longer."""


class Owner:
    """One member's own slice in one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.mine = attempt.mine
        self.reducer = Reducer(
            attempt.group, attempt.mine, attempt.state, attempt.context.phase(attempt.state.round), attempt.contribution
        )
        self._inboxes = {
            member.peer: Mailbox[memoryview](f"chunks of {short(member.peer)}", INBOX)
            for member in attempt.group.contributors
            if member != self.mine
        }
        self._served: set[PeerId] = set()  # Members whose stream has come.
        self._averaged = 0  # Chunks whose mean is there.
        self._frames: dict[int, bytes] = {}  # The latest averaged chunks as they travel, by number.

    async def average(self) -> None:
        """Average the slice. Raises AttemptError that names who is to blame."""
        await self._until_all_are_there()
        for begin, end in self.attempt.ranges(self.mine):
            parts = [await self._next(member) for member in self.attempt.group.contributors]
            await self._reduce(begin, end, parts)
            self._averaged += 1
            self.attempt.came((begin, end))
            self.attempt.wake()

    async def serve(self, stream: Stream, header: SliceHeader, payload: memoryview) -> None:
        """One member's stream, of which the first frame has been read. Raises RoundError."""
        member = self.attempt.group.find(header.peer)
        if member is None or member == self.mine or member.peer in self._served or not self.mine.elements:
            raise RefusedError(f"{short(header.peer)} has no business in attempt {self.attempt.group.attempt}")
        self._served.add(member.peer)
        self.attempt.wake()
        works = [partial(self._read, member, stream, header, payload), partial(self._write, member, stream)]
        try:
            await self.attempt.together(works, self.attempt.watch_failure)
        except AttemptError as error:
            raise RoundError(error.reason) from None

    async def _until_all_are_there(self) -> None:
        """Until those without a contribution have come too: an average means that every member has taken part."""
        silent = [member for member in self.attempt.group.members if not member.samples and member != self.mine]
        for member in silent if self.mine.elements else ():
            async with limit(self._patience, f"no stream from {short(member.peer)}", member.peer):
                while member.peer not in self._served:
                    await self.attempt.until_changed()

    async def _reduce(self, begin: int, end: int, parts: Sequence[memoryview | None]) -> None:
        work = partial(self.reducer.reduce, begin, end, parts, self.attempt.payload)
        if len(parts) * (end - begin) <= INLINE_ELEMENTS:
            work()
        else:
            await self.attempt.context.work(work)

    async def _read(self, member: Member, stream: Stream, header: SliceHeader, payload: memoryview) -> None:
        """Take the member's chunks as fast as they are added."""
        with blaming(member):
            if not member.samples:
                self.attempt.expect_header(header, member, Chunk(0, 0))
                return
            for bounds in self.attempt.ranges(self.mine):
                if bounds[0] == self.mine.begin:
                    self.attempt.expect(header, payload, member, self.mine, bounds)
                else:
                    payload = self.attempt.unframe(await stream.receive(), member, self.mine, bounds)
                await self._inboxes[member.peer].put(payload)

    async def _write(self, member: Member, stream: Stream) -> None:
        """Send the averaged chunks as they come into being."""
        for number, (begin, end) in enumerate(self.attempt.ranges(self.mine)):
            while self._averaged <= number:
                await self.attempt.until_changed()
            with blaming(member):
                async with limit(self._patience, f"{short(member.peer)} takes no averaged chunk", member.peer):
                    await self.attempt.send(stream, self._frame(number, begin, end))

    def _frame(self, number: int, begin: int, end: int) -> bytes:
        """An averaged chunk as it travels, which is the same for everyone."""
        frame = self._frames.get(number)
        if frame is None:
            attempt = self.attempt
            part = attempt.codec.cut(attempt.payload, attempt.elements, begin, end)
            frame = self._frames[number] = attempt.frame(attempt.chunk(self.mine, begin), part)
            while len(self._frames) > KEPT_FRAMES:
                # Of a member that is far behind the others it may be the very one.
                del self._frames[min(self._frames)]
        return frame

    async def _next(self, member: Member) -> memoryview | None:
        """The contributor's part of the next chunk; None for this member's own."""
        if member == self.mine:
            return None
        async with limit(self._patience, f"no contribution from {short(member.peer)}", member.peer):
            return await self._inboxes[member.peer].get()

    @property
    def _patience(self) -> float:
        return self.attempt.context.waits.progress
