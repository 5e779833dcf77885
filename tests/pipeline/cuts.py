"""A transport that loses its connection at a chosen message."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

from distqat.errors import UnreachableError
from distqat.ids import Endpoint
from distqat.rpc.transport import Bytes, Deadline, Method, Server, Stream, Transport

Direction = Literal["down", "up"]


class Cut:
    """Cuts the hop below `caller` at its `number`th message in that direction; only counts if `number` is 0."""

    def __init__(self, caller: str, direction: Direction, number: int) -> None:
        self.caller = caller
        self.direction = direction
        self.number = number
        self.seen: Counter[Direction] = Counter()

    def wrap(self, transport: Transport, name: str) -> Transport:
        return CutTransport(transport, self) if name == self.caller else transport

    def passes(self, direction: Direction) -> bool:
        self.seen[direction] += 1
        return direction != self.direction or self.seen[direction] != self.number


class CutTransport:
    """Hands everything on, but its streams may be cut."""

    def __init__(self, transport: Transport, cut: Cut) -> None:
        self._transport = transport
        self._cut = cut

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        async with self._transport.stream(to, method, deadline) as stream:
            yield CutStream(stream, self._cut)

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        return await self._transport.call(to, method, request, deadline)

    def serve(self, listen: Endpoint) -> AbstractAsyncContextManager[Server]:
        return self._transport.serve(listen)

    def traffic(self) -> Mapping[str, Bytes]:
        return self._transport.traffic()


class CutStream:
    """The message at which it is cut is lost."""

    def __init__(self, stream: Stream, cut: Cut) -> None:
        self._stream = stream
        self._cut = cut
        self._is_cut = False

    async def send(self, data: bytes) -> None:
        self._check("down")
        await self._stream.send(data)

    async def receive(self) -> bytes | None:
        data = await self._stream.receive()
        self._check("up")
        return data

    async def finish(self) -> None:
        await self._stream.finish()

    def _check(self, direction: Direction) -> None:
        self._is_cut = self._is_cut or not self._cut.passes(direction)
        if self._is_cut:
            raise UnreachableError("the connection was cut")
