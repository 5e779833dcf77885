"""A transport that lets a test step in before whatever its host does next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from distqat.ids import Endpoint
from distqat.rpc.transport import Bytes, Deadline, Method, Server, Stream, Transport

Hook = Callable[[str], Awaitable[None]]
"""Told what comes next: "Join", "Vote", "Exchange", or "send" for a message on a stream."""


async def _nothing(what: str) -> None:
    pass


class Trap:
    """Calls `hook` before every call, stream and message of the host."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.hook: Hook = _nothing

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        await self.hook(method.name)
        return await self.inner.call(to, method, request, deadline)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        await self.hook(method.name)
        async with self.inner.stream(to, method, deadline) as stream:
            yield _TrapStream(stream, self)

    def serve(self, listen: Endpoint) -> AbstractAsyncContextManager[Server]:
        return self.inner.serve(listen)

    def traffic(self) -> Mapping[str, Bytes]:
        return self.inner.traffic()

    def uplink(self) -> float:
        return self.inner.uplink()

    def downlink(self) -> float:
        return self.inner.downlink()


class _TrapStream:
    def __init__(self, inner: Stream, trap: Trap) -> None:
        self.inner = inner
        self.trap = trap

    async def send(self, data: bytes, more: bool = False) -> None:
        await self.trap.hook("send")
        await self.inner.send(data, more)

    async def receive(self) -> bytes | None:
        return await self.inner.receive()

    async def finish(self) -> None:
        await self.inner.finish()
