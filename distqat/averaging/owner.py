"""What a member does as the owner of a slice: add the contributions chunk by chunk, send the mean to everyone.

Chunk c is added as soon as chunk c of every contributor is there, in the order of the members. The mean is encoded once
and the same bytes go to all. Members stay within a few chunks of each other, so memory is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from distqat.aio import Mailbox
from distqat.averaging import reduce
from distqat.averaging.attempt import Attempt, AttemptError, blaming, limit, ranges
from distqat.averaging.group import Member
from distqat.averaging.messages import SliceHeader
from distqat.errors import RefusedError, RoundError, TensorError
from distqat.ids import PeerId, short
from distqat.rpc.transport import Stream
from distqat.wire.frames import Chunk

AHEAD = 4
"""Averaged chunks that are worked out before the slowest member has taken them."""

INBOX = 2
"""Chunks of one member that wait to be added."""


class Owner:
    """One member's own slice in one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.mine = attempt.mine
        self._contributors = attempt.group.contributors
        self._weights = reduce.weights([member.samples for member in self._contributors])
        self._inboxes = {
            member.peer: Mailbox[torch.Tensor](f"chunks of {short(member.peer)}", INBOX)
            for member in self._contributors
            if member != self.mine
        }
        self._served: set[PeerId] = set()  # Members whose stream has come.
        self._sent = {member.peer: 0 for member in attempt.group.members if member != self.mine}  # Averaged chunks.
        self._encoded: list[memoryview] = []  # Averaged chunks as they travel.

    async def average(self) -> None:
        """Average the slice. Raises AttemptError that names who is to blame."""
        attempt = self.attempt
        average = attempt.average[self.mine.begin : self.mine.end]
        for begin, end in ranges(self.mine.elements):
            parts = [await self._next(member, begin, end) for member in self._contributors]
            mean = await attempt.context.work(partial(self._mean, parts))
            encoded = attempt.codec.encode(mean)
            # What everyone else will decode, so that all hold the same bits whatever the codec.
            average[begin:end] = attempt.codec.decode(encoded, torch.float32, (end - begin,))
            self._encoded.append(encoded)
            attempt.wake()
            await self._keep_pace()

    async def serve(self, stream: Stream, header: SliceHeader, payload: memoryview) -> None:
        """One member's stream, of which the first frame has been read. Raises RoundError."""
        member = self.attempt.group.find(header.peer)
        if member is None or member == self.mine or member.peer in self._served or not self.mine.elements:
            raise RefusedError(f"{short(header.peer)} has no business in attempt {self.attempt.group.attempt}")
        self._served.add(member.peer)
        works = [partial(self._read, member, stream, header, payload), partial(self._write, member, stream)]
        try:
            await self.attempt.together(works, self.attempt.watch_failure)
        except AttemptError as error:
            raise RoundError(error.reason) from None

    async def _read(self, member: Member, stream: Stream, header: SliceHeader, payload: memoryview) -> None:
        """Take the member's chunks as fast as they are added."""
        with blaming(member):
            if not member.samples:
                self.attempt.expect(header, member, Chunk(0, 0))
                return
            for begin, end in ranges(self.mine.elements):
                chunk = self.attempt.chunk(self.mine, begin)
                if begin == 0:
                    self.attempt.expect(header, member, chunk)
                    self.attempt.bytes += len(payload)
                    part = self.attempt.codec.decode(payload, torch.float32, (end,))
                else:
                    part = self.attempt.decode(await stream.receive(), member, chunk, end - begin)
                await self._inboxes[member.peer].put(part)

    async def _write(self, member: Member, stream: Stream) -> None:
        """Send the averaged chunks as they come into being."""
        for number, (begin, _) in enumerate(ranges(self.mine.elements)):
            while len(self._encoded) <= number:
                await self.attempt.until_changed()
            with blaming(member):
                async with limit(self._patience, f"{short(member.peer)} takes no averaged chunk", member.peer):
                    await self.attempt.send(stream, self.attempt.chunk(self.mine, begin), self._encoded[number])
            self._sent[member.peer] = number + 1
            self.attempt.wake()

    async def _next(self, member: Member, begin: int, end: int) -> torch.Tensor:
        """The contributor's part of the next chunk."""
        if member == self.mine:
            contribution = self.attempt.contribution
            assert contribution is not None
            return contribution[self.mine.begin + begin : self.mine.begin + end]
        async with limit(self._patience, f"no contribution from {short(member.peer)}", member.peer):
            return await self._inboxes[member.peer].get()

    def _mean(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        for member, part in zip(self._contributors, parts, strict=True):
            try:
                reduce.check_finite(part, short(member.peer))
            except TensorError as error:
                raise AttemptError(error.reason, member.peer) from None
        return reduce.weighted_mean(parts, self._weights)

    async def _keep_pace(self) -> None:
        """Wait for the member that is furthest behind with taking averaged chunks."""
        while self._sent and len(self._encoded) - min(self._sent.values()) > AHEAD:
            slowest = min(self._sent, key=lambda peer: self._sent[peer])
            async with limit(self._patience, f"{short(slowest)} takes no averaged chunk", slowest):
                await self.attempt.until_changed()

    @property
    def _patience(self) -> float:
        return self.attempt.context.waits.progress
