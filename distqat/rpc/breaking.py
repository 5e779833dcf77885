"""A transport whose calls and streams to one address can be broken off, once that peer is known to be lost.

A stopped process keeps its connections open: without this, whoever waits for it waits until its own deadline.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from distqat.errors import UnreachableError
from distqat.ids import Endpoint
from distqat.rpc.transport import Deadline, Method, Stream, Transport
from distqat.rpc.wrapped import WrappedStream, WrappedTransport


class Tie:
    """A call or a stream to another peer, as it can be broken off."""

    def __init__(self) -> None:
        self._error: UnreachableError | None = None  # Set once it is broken.
        self._waits: set[asyncio.Timeout] = set()  # Of those who wait now.

    def break_off(self, error: UnreachableError) -> None:
        """Whoever waits raises this, and so does whoever comes later."""
        self._error = error
        for wait in self._waits:
            # Who was broken off already is on its way out.
            if wait.when() is None:
                wait.reschedule(0.0)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Within, something is waited for. Raises UnreachableError when the tie is broken."""
        if self._error is not None:
            raise UnreachableError(self._error.reason)
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if self._error is None or not wait.expired():
                raise
            raise UnreachableError(self._error.reason) from None


class BreakableTransport(WrappedTransport):
    """A transport that knows what is under way, and to whom."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self._ties: defaultdict[Endpoint, set[Tie]] = defaultdict(set)  # Under way; no address without any.

    def break_off(self, to: Endpoint, reason: str) -> None:
        """The peer at that address is lost: all that is under way to it ends now. What begins later is not touched."""
        for tie in list(self._ties.get(to, ())):
            tie.break_off(UnreachableError(reason))

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        """See Transport."""
        async with self._tied(to) as tie, tie.waiting():
            return await self.inner.call(to, method, request, deadline)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        """See Transport."""
        async with self._tied(to) as tie, AsyncExitStack() as stack:
            async with tie.waiting():
                stream = await stack.enter_async_context(self.inner.stream(to, method, deadline))
            yield BreakableStream(stream, tie)

    @asynccontextmanager
    async def _tied(self, to: Endpoint) -> AsyncIterator[Tie]:
        tie = Tie()
        self._ties[to].add(tie)
        try:
            yield tie
        finally:
            self._ties[to].discard(tie)
            if not self._ties[to]:
                del self._ties[to]


class BreakableStream(WrappedStream):
    """A stream that ends with its tie."""

    def __init__(self, inner: Stream, tie: Tie) -> None:
        super().__init__(inner)
        self._tie = tie

    async def send(self, data: bytes, more: bool = False) -> None:
        """See Stream."""
        async with self._tie.waiting():
            await self.inner.send(data, more)

    async def receive(self) -> bytes | None:
        """See Stream."""
        async with self._tie.waiting():
            return await self.inner.receive()

    async def finish(self) -> None:
        """See Stream."""
        async with self._tie.waiting():
            await self.inner.finish()
