"""A transport that notes when the first frame of an exchange leaves, and may tell of each; all else it passes on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from distqat.averaging.messages import EXCHANGE
from distqat.ids import Endpoint
from distqat.rpc.transport import Bytes, Deadline, Method, Server, Stream, Transport


class TimedTransport:
    """Around another one."""

    def __init__(self, inner: Transport) -> None:
        self.first: float | None = None  # When the first frame left; None until one does. Set it back for the next.
        self.on_frame: Callable[[], None] | None = None  # Called before a frame of an exchange leaves.
        self._inner = inner

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        """See Transport."""
        return await self._inner.call(to, method, request, deadline)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        """See Transport."""
        async with self._inner.stream(to, method, deadline) as stream:
            yield _Noting(stream, self) if method == EXCHANGE else stream

    def serve(self, listen: Endpoint) -> AbstractAsyncContextManager[Server]:
        """See Transport."""
        return self._inner.serve(listen)

    def traffic(self) -> Mapping[str, Bytes]:
        """See Transport."""
        return self._inner.traffic()

    def uplink(self) -> float:
        """See Transport."""
        return self._inner.uplink()

    def downlink(self) -> float:
        """See Transport."""
        return self._inner.downlink()


class _Noting:
    """A stream of an exchange."""

    def __init__(self, inner: Stream, transport: TimedTransport) -> None:
        self._inner = inner
        self._transport = transport

    async def send(self, data: bytes, more: bool = False) -> None:
        if self._transport.first is None:
            self._transport.first = time.monotonic()
        if self._transport.on_frame is not None:
            self._transport.on_frame()
        await self._inner.send(data, more)

    async def receive(self) -> bytes | None:
        return await self._inner.receive()

    async def finish(self) -> None:
        await self._inner.finish()
