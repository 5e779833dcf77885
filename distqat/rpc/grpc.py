"""The real transport, on grpc.aio: what calls and streams are towards other machines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from distqat.errors import DeadlineError, UnreachableError
from distqat.ids import Endpoint
from distqat.rpc import headers
from distqat.rpc.channels import Channels
from distqat.rpc.handlers import task_group
from distqat.rpc.links import Links
from distqat.rpc.pipes import checked
from distqat.rpc.server import GrpcServer, open_server
from distqat.rpc.status import error_of
from distqat.rpc.streams import CallerStream, is_cancelled
from distqat.rpc.transport import Bytes, Deadline, Method, Stream

MAX_MESSAGE = 8 << 20
"""Bytes of the largest message: a frame of 1 MiB and its header fit easily; larger things are cut into frames."""

OPEN_TIMEOUT = 5.0
"""Seconds in which a stream without a deadline of its own must be accepted."""


UnaryCall = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
StreamCall = grpc.aio.StreamStreamMultiCallable[bytes, bytes]


@dataclass(frozen=True)
class TransportStatistics:
    """How things stand at one moment."""

    num_connections: int
    traffic: Mapping[str, Bytes]
    uplink: float
    """Bytes per second; 0: not known."""
    downlink: float


class GrpcTransport:
    """Reaches other peers over gRPC, and lets them reach this one; made by `open_transport`."""

    def __init__(self, channels: Channels, max_message: int, links: Links) -> None:
        self._channels = channels
        self._max_message = max_message
        self._links = links
        self._meter = links.meter

    def __repr__(self) -> str:
        return f"<GrpcTransport {len(self._channels)} connections>"

    def statistics(self) -> TransportStatistics:
        """A snapshot."""
        return TransportStatistics(len(self._channels), self.traffic(), self.uplink(), self.downlink())

    def traffic(self) -> Mapping[str, Bytes]:
        """Message bytes so far by flow."""
        return self._meter.snapshot()

    def uplink(self) -> float:
        """Bytes per second that this host's link was measured to carry out; 0: not known."""
        return self._links.gauge.uplink

    def downlink(self) -> float:
        """Bytes per second that this host's link was seen to carry in, at least; 0: not known."""
        return self._links.gauge.downlink

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        """Ask once and wait for the answer."""
        message = checked(request, self._max_message)
        left = deadline.left()
        if left <= 0:
            raise DeadlineError(f"{method} at {to}: no answer in time")
        async with self._channels.use(to, method.lane) as channel:
            self._meter.sent(method.flow, message)
            try:
                asking: UnaryCall = channel.unary_unary(method.path)
                answer = await asking(message, timeout=left, metadata=headers.write(left, method.lane))
            except grpc.aio.AioRpcError as error:
                raise error_of(error, method, to) from None
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                raise UnreachableError(f"{method} at {to}: the transport is closed") from None
        self._meter.received(method.flow, answer)
        return answer

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        """Open a stream; entering waits until the other side has accepted it."""
        left = deadline.left() if deadline is not None else None
        async with self._channels.use(to, method.lane) as channel, task_group() as group:
            opening: StreamCall = channel.stream_stream(method.path)
            call = opening(timeout=left, metadata=headers.write(left, method.lane))
            stream = CallerStream(call, to, method, self._links, self._max_message, group)
            try:
                try:
                    async with asyncio.timeout(OPEN_TIMEOUT if left is None else None):
                        await stream.accepted()
                except TimeoutError:
                    raise DeadlineError(f"{method} at {to}: not accepted in {OPEN_TIMEOUT:.0f} s") from None
                yield stream
            finally:
                await stream.leave()

    def serve(self, listen: Endpoint) -> AbstractAsyncContextManager[GrpcServer]:
        """Listen; at the end handlers are cancelled and joined."""
        return open_server(listen, self._links, self._max_message)


@asynccontextmanager
async def open_transport(max_message: int = MAX_MESSAGE) -> AsyncIterator[GrpcTransport]:
    """A transport over gRPC; its connections are closed at the end."""
    channels, links = Channels(max_message), Links()
    async with task_group() as group:
        watching = group.create_task(links.watch(), name="links")
        try:
            yield GrpcTransport(channels, max_message, links)
        finally:
            watching.cancel()
            await channels.close()
