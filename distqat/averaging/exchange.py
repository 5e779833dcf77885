"""Two shots: every member's slices to their owners, the averaged slices back.

As a member it opens a stream to every owner, sends its part of the owner's slice in chunks and takes the averaged
chunks from the same stream; as an owner see `owner`. Sending, adding, encoding and returning overlap, and so does
working out the next state from the averaged chunks that are there. The first thing that goes wrong ends the attempt at
this member, with the name of the one to blame if there is one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

import numpy as np
import torch

from distqat.averaging import messages
from distqat.averaging.attempt import Attempt, limit
from distqat.averaging.blame import AttemptError, blaming
from distqat.averaging.context import Context
from distqat.averaging.contribution import Average, Contribution
from distqat.averaging.group import Group, Member
from distqat.averaging.outer import OuterState, Step
from distqat.averaging.owner import Owner
from distqat.errors import MessageError, StaleError, TensorError
from distqat.ids import short
from distqat.model.state import BLOCK_BYTES
from distqat.rpc.transport import Stream
from distqat.wire.frames import Chunk

KEPT_ATTEMPTS = 64
"""Attempts that are remembered as over."""


class Exchange:
    """One attempt at one member, both as a member and as an owner."""

    def __init__(self, context: Context, group: Group, contribution: Contribution | None, state: OuterState) -> None:
        """`state` is what the round begins with."""
        self.attempt = Attempt(context, group, contribution, state)
        self.owner = Owner(self.attempt)
        self.step = Step(state, context.phase(state.round), group.codec)

    async def run(self) -> Average:
        """The average of the group. Raises AttemptError."""
        attempt = self.attempt
        works = [
            partial(self._pull, owner) for owner in attempt.group.members if owner != attempt.mine and owner.elements
        ]
        beside = [self._step_ahead] if self._can_step_ahead else []
        await attempt.together([self.owner.average, *works], attempt.watch_members, *beside)
        residual = None
        if self.owner.reducer.has_residual:
            residual = await attempt.context.work(self.owner.reducer.residual)
        return Average(attempt.group.codec, attempt.elements, attempt.payload, attempt.bytes, residual)

    @property
    def _can_step_ahead(self) -> bool:
        """Whether there are blocks that are complete before the last chunk comes, and room for the next state beside
        chunks under way: there is none where what travels is as long as it."""
        size = torch.float32.itemsize * self.attempt.elements
        return size > BLOCK_BYTES and 2 * len(self.attempt.payload) < size

    async def _step_ahead(self) -> None:
        """Take the outer step where the average is there already. What it does not come to is left to the end."""
        attempt = self.attempt
        average = Average(attempt.group.codec, attempt.elements, attempt.payload, bytes=0)
        while True:
            begin, end = await attempt.next_averaged()
            await attempt.context.work(partial(self.step.take, average, begin, end))

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
        """The contribution's part of the slice, worked out chunk by chunk; those to other owners come in between."""
        attempt, contribution = self.attempt, self.attempt.contribution
        with blaming(owner):
            if contribution is None:
                await attempt.send(stream, attempt.frame(Chunk(0, 0), ()))
            else:
                for begin, end in attempt.ranges(owner):
                    part = await self._part(contribution, begin, end)
                    await attempt.send(stream, attempt.frame(attempt.chunk(owner, begin), part))
            await stream.finish()

    async def _part(self, contribution: Contribution, begin: int, end: int) -> list[memoryview]:
        attempt = self.attempt
        name = attempt.group.codec
        work = partial(contribution.encode, name, begin, end)
        try:
            is_encoded = contribution.is_encoded(name, begin, end)
            encoded = work() if is_encoded else await attempt.context.work(work)
        except TensorError as error:
            raise AttemptError(error.reason, attempt.mine.peer) from None
        if encoded is not None:
            return attempt.codec.cut(encoded, attempt.elements, begin, end)
        exact = np.empty(end - begin, np.float32)
        contribution.read(begin, exact, is_exact=True)
        return [exact.view(np.uint8).data]

    async def _receive(self, owner: Member, stream: Stream) -> None:
        attempt = self.attempt
        seconds = attempt.context.waits.answer
        with blaming(owner):
            for bounds in attempt.ranges(owner):
                async with limit(seconds, f"no averaged chunk from {short(owner.peer)}", owner.peer):
                    frame = await stream.receive()
                attempt.store(attempt.unframe(frame, owner, owner, bounds), bounds)
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
