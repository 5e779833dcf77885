"""A transport in which every message of a host passes a gate: there it may be stopped, go on, or meet its fate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from distqat.ids import Endpoint
from distqat.rpc.transport import Caller, CallHandler, Deadline, Method, Service, Stream, StreamHandler, Transport
from distqat.rpc.wrapped import WrappedStream, WrappedTransport

Hook = Callable[[str], Awaitable[None]]
"""Told what comes next: "> Join" a request leaves, "< Join" its answer is here, "Join >" one is answered, and so on."""


async def nothing(what: str) -> None:
    """Let it pass."""


class Gate(WrappedTransport):
    """Wraps the transport of a host. While it is closed the host is stopped (SIGSTOP): it neither sends nor takes."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.hook: Hook = nothing
        self.count = 0  # Messages that have passed.
        self._open = asyncio.Event()
        self._open.set()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def stop(self) -> None:
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    async def passes(self, what: str) -> None:
        if not self._open.is_set():
            await self._open.wait()
        self.count += 1
        await self.hook(what)

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        await self.passes(f"> {method.name}")
        answer = await super().call(to, method, request, deadline)
        await self.passes(f"< {method.name}")
        return answer

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        await self.passes(f"> {method.name}")
        async with super().stream(to, method, deadline) as stream:
            await self.passes(f"< {method.name}")
            yield stream

    def wrap_stream(self, stream: Stream, to: Endpoint, method: Method) -> Stream:
        return _GateStream(stream, self)

    def wrap_service(self, service: Service) -> Service:
        calls = {name: self._call(name, handler) for name, handler in service.calls.items()}
        streams = {name: self._stream(name, handler) for name, handler in service.streams.items()}
        return Service(service.name, calls, streams)

    def uplink(self) -> float:
        return 0.0

    def downlink(self) -> float:
        return 0.0

    def _call(self, name: str, handler: CallHandler) -> CallHandler:
        async def answer(request: bytes, caller: Caller) -> bytes:
            await self.passes(f"{name} >")
            reply = await handler(request, caller)
            await self.passes(f"{name} <")
            return reply

        return answer

    def _stream(self, name: str, handler: StreamHandler) -> StreamHandler:
        async def answer(stream: Stream, caller: Caller) -> None:
            await self.passes(f"{name} >")
            await handler(_GateStream(stream, self), caller)
            await self.passes(f"{name} <")

        return answer


class _GateStream(WrappedStream):
    def __init__(self, inner: Stream, gate: Gate) -> None:
        super().__init__(inner)
        self.gate = gate

    async def send(self, data: bytes, more: bool = False) -> None:
        await self.gate.passes("> chunk")
        await super().send(data, more)

    async def receive(self) -> bytes | None:
        data = await super().receive()
        await self.gate.passes("< chunk")
        return data

    async def finish(self) -> None:
        await self.gate.passes("> end")
        await super().finish()
