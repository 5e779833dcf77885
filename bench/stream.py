"""Tensors and small calls between two processes on loopback, beside bare gRPC with the same chunks.

pack > Hop.send > stream of frames > Hop.receive > unpack
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import grpc.aio
import torch

from bench.case import Case, Goal, Line, interleave
from bench.workers import open_worker
from distqat.ids import Endpoint
from distqat.pipeline.hop import Hop, Phase, pack, unpack
from distqat.pipeline.messages import Microbatch
from distqat.rpc.grpc import GrpcTransport, open_transport
from distqat.rpc.transport import Caller, Deadline, Lane, Method, Service, Stream
from distqat.wire.frames import CHUNK_BYTES

SERVICE = "distqat.bench.Stream"
TAKE = Method(SERVICE, "Take", Lane.BULK)
ECHO = Method(SERVICE, "Echo")

LOOPBACK = Endpoint("127.0.0.1", 0)
RULES: Mapping[Phase, Mapping[type, Phase]] = {Phase.OPENING: {Microbatch: Phase.OPENING}}
SHAPE = (4, 1024, 1024)
"""fp32: 16 MiB, the size of an activation."""
TENSORS = 16
"""In a run; 256 MiB."""
CALLS = 300
SMALL = bytes(64)
LIMIT = 1 << 30
PATIENCE = 60.0
UNLIMITED = [("grpc.max_receive_message_length", -1)]

RawStream = grpc.aio.StreamStreamMultiCallable[bytes, bytes]
RawCall = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
RawContext = grpc.aio.ServicerContext[bytes, bytes]


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Both ways of moving the same bytes take turns, and so do both ways of calling."""
    runs = 5 if quick else 25
    async with (
        open_worker("receiver", open_receiver) as receiver,
        open_transport() as transport,
    ):
        ours, raw = await receiver.ask("endpoints")
        async with grpc.aio.insecure_channel(str(raw), options=UNLIMITED) as channel:
            measured = await interleave(runs, partial(_send, transport, ours), partial(_send_raw, channel))
            yield Case(
                "stream", "fp32 tensors of 16 MiB", "GB/s", "higher", "grpc.aio, bytes in chunks of 1 MiB",
                Goal("ratio", 0.8),
            ).line(*measured)  # fmt: skip
            measured = await interleave(runs, partial(_call, transport, ours), partial(_call_raw, channel))
            yield Case("stream", "small call", "ms", "lower", "grpc.aio unary").line(*measured)


# Ours.


async def _send(transport: GrpcTransport, to: Endpoint) -> float:
    """GB/s from tensor to tensor, over a stream of its own."""
    tensor = torch.randn(SHAPE)
    began = time.perf_counter()
    async with transport.stream(to, TAKE) as stream:
        hop = Hop(stream, {}, LIMIT)
        for index in range(TENSORS):
            headers, payload = await pack({"hidden": tensor}, "none")
            await hop.send(Microbatch(1, index, TENSORS, TENSORS, True, 1, headers), payload)
        await hop.finish()
        taken = await stream.receive()
    assert taken == str(TENSORS * tensor.numel()).encode()
    return TENSORS * tensor.nbytes / (time.perf_counter() - began) / 1e9


async def _take(stream: Stream, _: Caller) -> None:
    """Decode every tensor, and say how many elements there were."""
    hop, elements = Hop(stream, RULES, LIMIT), 0
    while (received := await hop.receive()) is not None:
        message, payload = received
        assert isinstance(message, Microbatch)
        elements += (await unpack(message.tensors, payload))["hidden"].numel()
    await stream.send(str(elements).encode())


async def _call(transport: GrpcTransport, to: Endpoint) -> float:
    """Milliseconds of one call, one after the other."""
    began = time.perf_counter()
    for _ in range(CALLS):
        await transport.call(to, ECHO, SMALL, Deadline.after(PATIENCE))
    return (time.perf_counter() - began) / CALLS * 1e3


async def _echo(request: bytes, _: Caller) -> bytes:
    return request


# Bare gRPC.


async def _send_raw(channel: grpc.aio.Channel) -> float:
    """GB/s of as many bytes, in as large chunks."""
    chunk, total = bytes(CHUNK_BYTES), 4 * TENSORS * torch.Size(SHAPE).numel()
    began = time.perf_counter()
    opening: RawStream = channel.stream_stream(TAKE.path)
    call = opening()
    for _ in range(total // CHUNK_BYTES):
        await call.write(chunk)
    await call.done_writing()
    assert await call.read() == str(total).encode()
    return total / (time.perf_counter() - began) / 1e9


async def _call_raw(channel: grpc.aio.Channel) -> float:
    asking: RawCall = channel.unary_unary(ECHO.path)
    began = time.perf_counter()
    for _ in range(CALLS):
        await asking(SMALL, timeout=PATIENCE)
    return (time.perf_counter() - began) / CALLS * 1e3


class _Raw(grpc.GenericRpcHandler):
    """Answers the same two methods."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Called by gRPC for each call."""
        if details.method == TAKE.path:
            return grpc.stream_stream_rpc_method_handler(self._take)
        return grpc.unary_unary_rpc_method_handler(self._echo)

    async def _take(self, _: Iterator[bytes], context: RawContext) -> None:
        total = 0
        # gRPC ends with an object of its own that is no bytes.
        while isinstance(chunk := await context.read(), bytes):
            total += len(chunk)
        await context.write(str(total).encode())

    async def _echo(self, request: bytes, _: RawContext) -> bytes:
        return request


class Receiver:
    """The other process: listens in both ways."""

    def __init__(self, ours: Endpoint, raw: Endpoint) -> None:
        self.ours = ours
        self.raw = raw

    async def endpoints(self) -> tuple[Endpoint, Endpoint]:
        """Ours and the bare one."""
        return self.ours, self.raw


@asynccontextmanager
async def open_receiver() -> AsyncIterator[Receiver]:
    """Both servers on ports of their own."""
    async with open_transport() as transport, transport.serve(LOOPBACK) as server:
        server.add(Service(SERVICE, {ECHO.name: _echo}, {TAKE.name: _take}))
        raw = grpc.aio.server(options=UNLIMITED)
        raw.add_generic_rpc_handlers((_Raw(),))
        port = raw.add_insecure_port(str(LOOPBACK))
        await raw.start()
        try:
            yield Receiver(server.endpoint, Endpoint(LOOPBACK.host, port))
        finally:
            await raw.stop(None)
