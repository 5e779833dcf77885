"""A transport that does what another one does, for whoever wants to step in: a measurement, a fault, a slow link.

Derive from it: override what is to differ of `call`, `stream` and `serve`, or `wrap_stream` (of every stream that is
opened here) and `wrap_service` (of every service that is served here).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from distqat.ids import Endpoint
from distqat.rpc.transport import Bytes, Deadline, Method, Server, Service, Stream, Transport


class WrappedTransport:
    """A transport around another one; as it stands it changes nothing."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    def wrap_stream(self, stream: Stream, to: Endpoint, method: Method) -> Stream:
        """What whoever opened this stream is given instead of it."""
        return stream

    def wrap_service(self, service: Service) -> Service:
        """What is served instead of this."""
        return service

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        """See Transport."""
        return await self.inner.call(to, method, request, deadline)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        """See Transport."""
        async with self.inner.stream(to, method, deadline) as stream:
            yield self.wrap_stream(stream, to, method)

    @asynccontextmanager
    async def serve(self, listen: Endpoint) -> AsyncIterator[Server]:
        """See Transport."""
        async with self.inner.serve(listen) as server:
            yield _WrappedServer(server, self.wrap_service)

    def traffic(self) -> Mapping[str, Bytes]:
        """See Transport."""
        return self.inner.traffic()

    def uplink(self) -> float:
        """See Transport."""
        return self.inner.uplink()

    def downlink(self) -> float:
        """See Transport."""
        return self.inner.downlink()


class WrappedStream:
    """One end of a stream around another one; as it stands it changes nothing."""

    def __init__(self, inner: Stream) -> None:
        self.inner = inner

    async def send(self, data: bytes, more: bool = False) -> None:
        """See Stream."""
        await self.inner.send(data, more)

    async def receive(self) -> bytes | None:
        """See Stream."""
        return await self.inner.receive()

    async def finish(self) -> None:
        """See Stream."""
        await self.inner.finish()


class _WrappedServer:
    def __init__(self, inner: Server, wrap: Callable[[Service], Service]) -> None:
        self._inner = inner
        self._wrap = wrap

    @property
    def endpoint(self) -> Endpoint:
        return self._inner.endpoint

    def add(self, service: Service) -> None:
        self._inner.add(self._wrap(service))

    async def remove(self, name: str) -> None:
        await self._inner.remove(name)
