"""A transport that lets a test step in before whatever its host does next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from distqat.ids import Endpoint
from distqat.rpc.transport import Deadline, Method, Stream, Transport
from distqat.rpc.wrapped import WrappedStream, WrappedTransport

Hook = Callable[[str], Awaitable[None]]
"""Told what comes next: "Join", "Vote", "Exchange", or "send" for a message on a stream."""


async def _nothing(what: str) -> None:
    pass


class Trap(WrappedTransport):
    """Calls `hook` before every call, stream and message of the host."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.hook: Hook = _nothing

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        await self.hook(method.name)
        return await super().call(to, method, request, deadline)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        await self.hook(method.name)
        async with super().stream(to, method, deadline) as stream:
            yield stream

    def wrap_stream(self, stream: Stream, to: Endpoint, method: Method) -> Stream:
        return _TrapStream(stream, self)


class _TrapStream(WrappedStream):
    def __init__(self, inner: Stream, trap: Trap) -> None:
        super().__init__(inner)
        self.trap = trap

    async def send(self, data: bytes, more: bool = False) -> None:
        await self.trap.hook("send")
        await super().send(data, more)
