"""The side that gives copies of a seat's local state. One at a time, and bulk: training goes before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from distqat.averaging.context import Context
from distqat.averaging.state.snapshot import CHUNK_BYTES, hash_of
from distqat.errors import DeadlineError, MessageError
from distqat.ids import short
from distqat.roles.copies import messages
from distqat.roles.copies.copy import Copy, describe
from distqat.roles.copies.messages import SERVICE, TAKE, CopyHeader, CopyRequest
from distqat.rpc.transport import Caller, Service, Stream
from distqat.wire import frames
from distqat.wire.frames import Chunk

NOTHING = Chunk(0, 0)
"""Of the frame that says that the asker is the heir."""


class Held(Protocol):
    """A seat whose local state is given; `seat.Seat` is one."""

    async def copy(self) -> Copy:
        """As it is between two steps. Raises StaleError while a committed round is not in the stage yet."""
        ...

    def handing_over(self) -> AbstractAsyncContextManager[Callable[[], Awaitable[Copy]]]:
        """Gives what waits for the last copy, after which nothing moves the stage any more.

        On leaving without an error the seat is the asker's. Raises RefusedError if it is not to be given away.
        """
        ...


class Giver:
    """Answers for one seat."""

    def __init__(self, circle: Context, held: Held) -> None:
        self.circle = circle
        self._held = held
        self._turn = asyncio.Lock()  # Held while a copy is made and sent: each takes as much memory as the stage.

    def __repr__(self) -> str:
        return f"<Giver of stage {self.circle.stage}, {'busy' if self._turn.locked() else 'idle'}>"

    def service(self) -> Service:
        """To be added to a server."""
        return Service(SERVICE, streams={TAKE.name: self.take})

    async def take(self, stream: Stream, caller: Caller) -> None:
        """One copy."""
        async with self._within("nothing was asked"):
            request = await stream.receive()
        if request is None:
            raise MessageError("a stream without a message")
        asked = CopyRequest.decode(request)
        self.circle.check(asked.run, asked.stage)
        if not asked.is_last:
            async with self._turn:
                await self._send(stream, await self._held.copy())
            return
        async with self._held.handing_over() as last:
            async with self._within("nothing was taken"):
                await stream.send(messages.frame(CopyHeader(None, NOTHING, b"")))
            await self._send(stream, await last())
            # The asker ends the stream when the state is in its stage: from then on the seat is its.
            async with self._within("the heir has not said that it holds the state"):
                if await stream.receive() is not None:
                    raise MessageError(f"{short(self.circle.me)} expected the end of the stream")

    async def _send(self, stream: Stream, copy: Copy) -> None:
        manifest, payload = describe(copy)
        for chunk, views in frames.chunks(payload, CHUNK_BYTES):
            header = CopyHeader(manifest if chunk.offset == 0 else None, chunk, hash_of(views))
            async with self._within("nothing was taken"):
                await stream.send(messages.frame(header, *views))

    @asynccontextmanager
    async def _within(self, what: str) -> AsyncIterator[None]:
        seconds = self.circle.waits.answer
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise DeadlineError(f"{what} for {seconds:g} s") from None
