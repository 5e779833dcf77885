"""The peers of bench/stream: the same bytes over bare gRPC, in chunks of a size, and over a bare TCP connection."""

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


async def send_grpc(channel: grpc.aio.Channel, tensor_bytes: int, tensors: int, chunk_bytes: int) -> float:
    """GB/s of the bytes of so many tensors, cut into chunks of that size beforehand, over a stream of its own."""
    chunks = [filled(chunk_bytes) for _ in range(tensor_bytes // chunk_bytes)]
    total = tensors * tensor_bytes
    began = time.perf_counter()
    opening: Stream = channel.stream_stream(TAKE)
    call = opening()
    for _ in range(tensors):
        for chunk in chunks:
            await call.write(chunk)
    await call.done_writing()
    assert await call.read() == str(total).encode()
    return total / (time.perf_counter() - began) / 1e9


async def call_grpc(channel: grpc.aio.Channel, request: bytes, calls: int) -> float:
    """Milliseconds of one call, one after the other."""
    asking: Call = channel.unary_unary(ECHO)
    began = time.perf_counter()
    for _ in range(calls):
        await asking(request)
    return (time.perf_counter() - began) / calls * 1e3


async def send_tcp(to: Endpoint, tensor_bytes: int, tensors: int) -> float:
    """GB/s of as many bytes, over a connection of its own."""
    return await asyncio.to_thread(_send_tcp, to, tensor_bytes, tensors)


def _send_tcp(to: Endpoint, tensor_bytes: int, tensors: int) -> float:
    data, total = filled(tensor_bytes), tensors * tensor_bytes
    began = time.perf_counter()
    with socket.create_connection((to.host, to.port)) as connection:
        connection.sendall(total.to_bytes(LENGTH_BYTES))
        for _ in range(tensors):
            connection.sendall(data)
        assert connection.recv(1) == b"."
    return total / (time.perf_counter() - began) / 1e9


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
async def serve_grpc() -> AsyncIterator[Endpoint]:
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
async def serve_tcp() -> AsyncIterator[Endpoint]:
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
