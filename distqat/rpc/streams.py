"""Streams over gRPC, both ends.

What gRPC does otherwise than `transport.Stream` promises is put right here: a receive that is cancelled loses nothing,
a caller that leaves is not taken for one that has finished, and a handler that ends while its caller still sends takes
neither its last messages nor its error with it (see `endings`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import cast
from urllib.parse import unquote

import grpc.aio

from distqat.errors import DistqatError, MessageError, RpcError, UnreachableError
from distqat.ids import Endpoint
from distqat.rpc import endings, headers
from distqat.rpc.endings import FINISH
from distqat.rpc.handlers import Outcome, again
from distqat.rpc.inflow import Inflow
from distqat.rpc.links import Links
from distqat.rpc.outflow import Outflow
from distqat.rpc.pipes import checked
from distqat.rpc.sockets import is_loopback
from distqat.rpc.status import error_of
from distqat.rpc.transport import Lane, Method

StreamCall = grpc.aio.StreamStreamCall[bytes, bytes]
ServerContext = grpc.aio.ServicerContext[bytes, bytes]

_FOREIGN = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)
"""Whatever gRPC raises when a stream is over."""

_LAST_READ = 1.0
"""Seconds that the last read of a call that is over may take; it has nothing to wait for."""


class GrpcStream(ABC):
    """What both ends have in common."""

    def __init__(self, host: str, method: Method, links: Links, max_message: int, group: asyncio.TaskGroup) -> None:
        self.method = method
        self._links = links
        self._host = host  # Of the other end.
        self._lane = Lane.CONTROL if is_loopback(host) else method.lane  # What stays on this host is not paced.
        self._max_message = max_message
        self._inflow = Inflow(str(method), self._read_once, group)  # gRPC allows one read at a time,
        self._outflow = Outflow(str(method), self._write_once, group)  # and one write.
        self._finished = False  # This end sends no more.

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method}{' finished' if self._finished else ''}>"

    async def send(self, data: bytes, more: bool = False) -> None:
        """Send one message; waits while the other side is not keeping up."""
        if self._finished:
            raise RpcError(f"this side of the {self.method} stream has finished sending")
        message = checked(data, self._max_message)
        if endings.is_end(message):
            raise MessageError("a zero byte, or one and a name, stands for the end of a stream")
        self._check_open()
        await self._links.leave(self._host, self._lane, len(message))
        await self._outflow.put(message)
        if not more:
            await self._outflow.drain()
        self._links.meter.sent(self.method.flow, message)

    async def receive(self) -> bytes | None:
        """The next message, or None when the other side has finished sending."""
        message = await self._inflow.get()
        if message is not None:
            self._links.came(self._lane)
            self._links.meter.received(self.method.flow, message)
        return message

    async def flush(self) -> None:
        """Wait until all that was sent is with gRPC. Raises RpcError."""
        await self._outflow.drain()

    async def finish(self) -> None:
        """Say that no more will be sent."""
        if not self._finished:
            self._finished = True
            await self._half_close()

    def close(self) -> None:
        """Nothing more is received or sent; the owner's group joins the tasks that read and write."""
        self._inflow.close()
        self._outflow.close()

    async def _read_once(self) -> Outcome[bytes | None]:
        try:
            return Outcome(await self._read())
        except _FOREIGN as error:
            return Outcome(error=await self._explain(error))
        except DistqatError as error:
            return Outcome(error=error)

    async def _write_once(self, message: bytes) -> DistqatError | None:
        try:
            await self._write(message)
        except _FOREIGN as error:
            return await self._explain(error)
        except DistqatError as error:
            return error
        return None

    @abstractmethod
    async def _read(self) -> bytes | None:
        """The next message, None at a proper end."""

    @abstractmethod
    async def _write(self, message: bytes) -> None:
        """Hand one message to gRPC."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise what a sender is told after the other side has said that it ends."""

    @abstractmethod
    async def _half_close(self) -> None:
        """Tell the other side that no more comes."""

    @abstractmethod
    async def _explain(self, error: Exception) -> DistqatError:
        """What an error of gRPC means here."""


class CallerStream(GrpcStream):
    """The end of the peer that opened the stream."""

    def __init__(
        self, call: StreamCall, to: Endpoint, method: Method, links: Links, max_message: int, group: asyncio.TaskGroup
    ) -> None:
        super().__init__(to.host, method, links, max_message, group)
        self._call = call
        self._to = to
        self._end: Outcome[None] | None = None  # How the handler has ended, once it has said so.

    async def accepted(self) -> None:
        """Wait until the other side has accepted the stream. Raises RpcError."""
        try:
            if not headers.is_acceptance(await self._call.initial_metadata()) or self._call.done():
                raise await self._broken()
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise UnreachableError(f"{self.method} at {self._to}: the transport is closed") from None

    async def leave(self) -> None:
        """Cancel what is still open, and wait until gRPC has let go of it."""
        self.close()
        self._call.cancel()
        await self._call.code()

    async def _read(self) -> bytes | None:
        if self._end is None:
            message: object = await self._call.read()
            if message is not grpc.aio.EOF:
                if not endings.is_end(cast(bytes, message)):
                    return cast(bytes, message)
                self._end = endings.read(cast(bytes, message))
            else:
                self._end = Outcome()  # A server that closes says no more than the status.
        if self._end.error is not None:
            raise again(self._end.error)
        return None

    async def _write(self, message: bytes) -> None:
        self._check_open()
        self._inflow.start()  # One who only sends must learn of the end too.
        try:
            await self._call.write(message)
        except _FOREIGN:
            # The call is over, and what comes last says why better than gRPC does now.
            await self._inflow.idle(_LAST_READ)
            self._check_open()
            raise

    async def _half_close(self) -> None:
        if self._end is not None:
            return
        try:
            await self._outflow.put(FINISH)
            await self._outflow.drain()
            await self._call.done_writing()
        except (DistqatError, *_FOREIGN):
            pass  # The other side has ended, or is gone: receiving tells which.

    def _check_open(self) -> None:
        if self._end is not None:
            raise again(self._end.error) if self._end.error is not None else self._ended()

    def _ended(self) -> UnreachableError:
        return UnreachableError(f"{self.method} at {self._to}: the other side has ended the stream")

    async def _explain(self, error: Exception) -> DistqatError:
        if isinstance(error, grpc.aio.AioRpcError):
            return error_of(error, self.method, self._to)
        if self._call.done():
            return await self._broken()
        return UnreachableError(f"{self.method} at {self._to}: {error}")

    async def _broken(self) -> DistqatError:
        """Why the call is over, for one who wanted to go on."""
        code, details = await self._call.code(), await self._call.details()
        if code is grpc.StatusCode.OK:
            return self._ended()
        trailing = await self._call.trailing_metadata()
        return error_of(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details), self.method, self._to)


class HandlerStream(GrpcStream):
    """The end of the peer that answers."""

    def __init__(
        self, context: ServerContext, method: Method, links: Links, max_message: int, group: asyncio.TaskGroup
    ) -> None:
        super().__init__(address_of(context).rpartition(":")[0].strip("[]"), method, links, max_message, group)
        self._context = context
        self._ended = False  # The caller has said that it sends no more.
        self._gone = False  # The caller has left.

    async def _read(self) -> bytes | None:
        if self._ended:
            return None
        message: object = await self._context.read()
        if message == FINISH:
            self._ended = True
            return None
        if message is grpc.aio.EOF:
            self._gone = True
            raise self._left()
        return cast(bytes, message)

    async def _write(self, message: bytes) -> None:
        await self._context.write(message)

    def _check_open(self) -> None:
        """A caller that sends no more may still receive."""

    async def _half_close(self) -> None:
        """A handler finishes by returning."""

    async def say_end(self, error: DistqatError | None) -> None:
        """Say how the handler has ended, then discard what comes until the caller finishes or leaves. Raises RpcError.

        Only then may the call end: gRPC spoils it for a caller that is writing at that moment. One that has finished
        writes no more, and learns everything from the status.
        """
        if self._ended or self._gone:
            return
        self._inflow.start()
        await self._outflow.put(endings.write(error))
        while not self._ended:
            await self.receive()

    async def _explain(self, error: Exception) -> DistqatError:
        return self._left()

    def _left(self) -> DistqatError:
        return UnreachableError(f"the caller of {self.method} has left")


def address_of(context: ServerContext) -> str:
    """Where a call came from: host and port, an IPv6 host in brackets."""
    return unquote(context.peer()).removeprefix("ipv4:").removeprefix("ipv6:")


def is_cancelled() -> bool:
    """Whether this task is being cancelled, and not merely waits for something that was."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
