"""The peers of bench/stream: the same bytes over bare gRPC, in chunks of a size, and over a bare TCP connection.

In two processes of their own, like ours: memory that one of them has freed would make the other faster or slower.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc.aio

from distqat.ids import Endpoint

LOOPBACK = Endpoint("127.0.0.1", 0)
TAKE = "/distqat.bench.Bare/Take"
ECHO = "/distqat.bench.Bare/Echo"
UNLIMITED = [("grpc.max_receive_message_length", -1)]
TCP_BYTES = 1 << 20
"""Taken from a socket at once."""
LENGTH_BYTES = 8
"""The first bytes on a TCP connection say how many follow."""

Stream = grpc.aio.StreamStreamMultiCallable[bytes, bytes]
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
Context = grpc.aio.ServicerContext[bytes, bytes]


def filled(size: int) -> bytes:
    """Bytes that were written once: untouched memory would all be one page, and always in the cache."""
    return bytes(range(256)) * (size // 256)


class Sender:
    """A process that sends; it holds the bytes of one tensor, in chunks of every size that is tried."""

    def __init__(self, channel: grpc.aio.Channel, tcp: Endpoint, tensor_bytes: int) -> None:
        self._channel = channel
        self._tcp = tcp
        self._data = filled(tensor_bytes)
        self._chunks: dict[int, list[bytes]] = {}  # By size; cut when first asked for.

    async def send_grpc(self, chunk_bytes: int, tensors: int) -> float:
        """GB/s of so many tensors, cut beforehand, over a stream of its own."""
        data = self._data
        cut = [data[begin : begin + chunk_bytes] for begin in range(0, len(data), chunk_bytes)]
        chunks = self._chunks.setdefault(chunk_bytes, cut)
        began = time.perf_counter()
        opening: Stream = self._channel.stream_stream(TAKE)
        call = opening()
        for _ in range(tensors):
            for chunk in chunks:
                await call.write(chunk)
        await call.done_writing()
        assert await call.read() == str(tensors * len(data)).encode()
        return tensors * len(data) / (time.perf_counter() - began) / 1e9

    async def send_tcp(self, tensors: int) -> float:
        """GB/s of so many tensors, over a connection of its own."""
        return await asyncio.to_thread(self._send_tcp, tensors)

    def _send_tcp(self, tensors: int) -> float:
        total = tensors * len(self._data)
        began = time.perf_counter()
        with socket.create_connection((self._tcp.host, self._tcp.port)) as connection:
            connection.sendall(total.to_bytes(LENGTH_BYTES))
            for _ in range(tensors):
                connection.sendall(self._data)
            assert connection.recv(1) == b"."
        return total / (time.perf_counter() - began) / 1e9

    async def call(self, request: bytes, calls: int) -> float:
        """Milliseconds of one call, one after the other."""
        asking: Call = self._channel.unary_unary(ECHO)
        began = time.perf_counter()
        for _ in range(calls):
            await asking(request)
        return (time.perf_counter() - began) / calls * 1e3


@asynccontextmanager
async def open_sender(grpc_at: Endpoint, tcp_at: Endpoint, tensor_bytes: int) -> AsyncIterator[Sender]:
    """A sender to what `open_receiver` serves."""
    async with grpc.aio.insecure_channel(str(grpc_at), options=UNLIMITED) as channel:
        yield Sender(channel, tcp_at, tensor_bytes)


class Receiver:
    """A process that takes what is sent."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self._endpoints = endpoints

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """Of gRPC and of TCP."""
        return self._endpoints


@asynccontextmanager
async def open_receiver() -> AsyncIterator[Receiver]:
    """Both on ports of their own."""
    async with _serve_grpc() as grpc_at, _serve_tcp() as tcp_at:
        yield Receiver(grpc_at, tcp_at)


class _Handler(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Called by gRPC for each call."""
        if details.method == TAKE:
            return grpc.stream_stream_rpc_method_handler(self._take)
        return grpc.unary_unary_rpc_method_handler(self._echo)

    async def _take(self, _: Iterator[bytes], context: Context) -> None:
        total = 0
        # gRPC ends with an object of its own that is no bytes.
        while isinstance(chunk := await context.read(), bytes):
            total += len(chunk)
        await context.write(str(total).encode())

    async def _echo(self, request: bytes, _: Context) -> bytes:
        return request


@asynccontextmanager
async def _serve_grpc() -> AsyncIterator[Endpoint]:
    """Takes streams, answers calls."""
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((_Handler(),))
    port = server.add_insecure_port(str(LOOPBACK))
    await server.start()
    try:
        yield Endpoint(LOOPBACK.host, port)
    finally:
        await server.stop(None)


@asynccontextmanager
async def _serve_tcp() -> AsyncIterator[Endpoint]:
    """Takes connections, one after the other."""
    with socket.create_server((LOOPBACK.host, 0)) as listening:
        async with asyncio.TaskGroup() as group:
            taking = group.create_task(asyncio.to_thread(_take_tcp, listening))
            try:
                yield Endpoint(LOOPBACK.host, listening.getsockname()[1])
            finally:
                # Wakes the thread that waits for the next connection.
                listening.shutdown(socket.SHUT_RDWR)
                await taking


def _take_tcp(listening: socket.socket) -> None:
    room = memoryview(bytearray(TCP_BYTES))
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            left = int.from_bytes(connection.recv(LENGTH_BYTES, socket.MSG_WAITALL))
            while left:
                left -= connection.recv_into(room)
            connection.sendall(b".")
