"""Two shots: every member's slices to their owners, the averaged slices back.

As a member it opens a stream to every owner, sends its part of the owner's slice in chunks and takes the averaged
chunks from the same stream; as an owner see `owner`. Sending, adding and returning overlap. The first thing that goes
wrong ends the attempt at this member, with the name of the one to blame if there is one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

import torch

from distqat.averaging import messages
from distqat.averaging.attempt import Attempt, AttemptError, blaming, limit, ranges
from distqat.averaging.context import Context
from distqat.averaging.group import Group, Member
from distqat.averaging.owner import Owner
from distqat.errors import MessageError, StaleError
from distqat.ids import short
from distqat.rpc.transport import Stream
from distqat.wire.frames import Chunk

KEPT_ATTEMPTS = 64
"""Attempts that are remembered as over."""


class Exchange:
    """One attempt at one member, both as a member and as an owner."""

    def __init__(self, context: Context, group: Group, contribution: torch.Tensor | None) -> None:
        self.attempt = Attempt(context, group, contribution)
        self.owner = Owner(self.attempt)

    async def run(self) -> torch.Tensor:
        """The average of the group [num_elements]. Raises AttemptError."""
        attempt = self.attempt
        works = [
            partial(self._pull, owner) for owner in attempt.group.members if owner != attempt.mine and owner.elements
        ]
        await attempt.together([self.owner.average, *works], attempt.watch_members)
        return attempt.average

    def end(self) -> None:
        """The attempt is over: streams that are still open break."""
        self.attempt.fail(AttemptError("the attempt is over"))

    async def _pull(self, owner: Member) -> None:
        """Send the owner its part, take back the average of its slice."""
        with blaming(owner):
            transport = self.attempt.context.transport
            async with transport.stream(owner.endpoint, messages.EXCHANGE) as stream, asyncio.TaskGroup() as group:
                group.create_task(self.attempt.guard(partial(self._send, owner, stream)))
                group.create_task(self.attempt.guard(partial(self._receive, owner, stream)))

    async def _send(self, owner: Member, stream: Stream) -> None:
        attempt = self.attempt
        with blaming(owner):
            if attempt.contribution is None:
                await attempt.send(stream, Chunk(0, 0), memoryview(b""))
            else:
                part = attempt.contribution[owner.begin : owner.end]
                for begin, end in ranges(owner.elements):
                    await attempt.send(stream, attempt.chunk(owner, begin), attempt.codec.encode(part[begin:end]))
            await stream.finish()

    async def _receive(self, owner: Member, stream: Stream) -> None:
        attempt = self.attempt
        average = attempt.average[owner.begin : owner.end]
        seconds = attempt.context.waits.answer
        with blaming(owner):
            for begin, end in ranges(owner.elements):
                async with limit(seconds, f"no averaged chunk from {short(owner.peer)}", owner.peer):
                    frame = await stream.receive()
                average[begin:end] = attempt.decode(frame, owner, attempt.chunk(owner, begin), end - begin)
            # Leaving before the owner has ended the stream would look to it as if this member had died.
            async with limit(seconds, f"{short(owner.peer)} does not end its stream", owner.peer):
                if await stream.receive() is not None:
                    raise MessageError("more chunks than its slice has")


class Exchanges:
    """The attempts under way at one sibling, by name."""

    def __init__(self) -> None:
        self._open: dict[str, Exchange] = {}
        self._ended: deque[str] = deque(maxlen=KEPT_ATTEMPTS)
        self._changed = asyncio.Event()  # Set when an attempt begins or ends.

    def begin(self, exchange: Exchange) -> None:
        """The attempt is known from now on."""
        self._open[exchange.attempt.group.attempt] = exchange
        self._changed.set()

    def end(self, exchange: Exchange) -> None:
        """The attempt is over, and its late messages are refused."""
        name = exchange.attempt.group.attempt
        self._open.pop(name, None)
        self._ended.append(name)
        exchange.end()
        self._changed.set()

    async def find(self, name: str, seconds: float) -> Exchange:
        """The attempt; a member may hear of it a little later than its siblings. Raises StaleError."""
        try:
            async with asyncio.timeout(seconds):
                while name not in self._open:
                    if name in self._ended:
                        raise StaleError(f"attempt {name} is over")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise StaleError(f"attempt {name} is not known") from None
        return self._open[name]
