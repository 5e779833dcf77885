"""Tensors and small calls between two processes on loopback, beside bare gRPC and bare TCP with as many bytes.

pack > Hop.send > stream of frames > Hop.receive > unpack

The peer of the tensors is bare gRPC with whatever chunk size it is fastest with in the same run. `frames of ...` shows
what the size of our own frames does; docs/design/wire.md says which was chosen.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from statistics import median

import grpc.aio
import torch

from bench import bare
from bench.case import Case, Goal, Line, interleave
from bench.workers import open_worker
from distqat.ids import Endpoint
from distqat.pipeline.hop import Hop, Phase, pack, unpack
from distqat.pipeline.messages import Microbatch
from distqat.rpc.grpc import GrpcTransport, open_transport
from distqat.rpc.transport import Caller, Deadline, Lane, Method, Service, Stream
from distqat.wire import frames
from distqat.wire.frames import Assembler, Chunk
from distqat.wire.payload import Payload

SERVICE = "distqat.bench.Stream"
TAKE = Method(SERVICE, "Take", Lane.BULK)
FRAMES = Method(SERVICE, "Frames", Lane.BULK)
ECHO = Method(SERVICE, "Echo")

RULES: Mapping[Phase, Mapping[type, Phase]] = {Phase.OPENING: {Microbatch: Phase.OPENING}}
SHAPE = (4, 1024, 1024)
"""fp32: 16 MiB, the size of an activation."""
TENSOR_BYTES = 4 * torch.Size(SHAPE).numel()
FRAME_KIB = (256, 512, 1024, 2048, 4096)
BARE_KIB = (256, 512, 1024, 2048, 4096)
"""Sizes that are tried."""
CALLS = 300
SMALL = bytes(64)
LIMIT = 1 << 30
PATIENCE = 60.0


async def bench(quick: bool) -> AsyncIterator[Line]:
    """All ways of moving the same bytes take turns, and so do both ways of calling."""
    runs, tensors = (7, 8) if quick else (25, 16)
    async with open_worker("receiver", open_receiver) as receiver, open_transport() as transport:
        ours, bare_grpc, bare_tcp = await receiver.ask("endpoints")
        async with grpc.aio.insecure_channel(str(bare_grpc), options=bare.UNLIMITED) as channel:
            measured, tcp, *sizes = await interleave(
                runs,
                partial(_send, transport, ours, tensors),
                partial(bare.send_tcp, bare_tcp, TENSOR_BYTES, tensors),
                *(partial(bare.send_grpc, channel, TENSOR_BYTES, tensors, kib << 10) for kib in BARE_KIB),
            )
            case = f"fp32 tensors of {TENSOR_BYTES >> 20} MiB"
            kib, best = max(zip(BARE_KIB, sizes, strict=True), key=lambda found: median(found[1]))
            peer = f"grpc.aio, the same bytes cut beforehand, {kib} KiB each (its fastest)"
            yield Case("stream", case, "GB/s", "higher", peer, Goal("ratio", 0.85)).line(measured, best)
            yield Case("stream", case, "GB/s", "higher", "TCP, bytes").line(measured, tcp)
            for line in await _frame_sizes(transport, ours, tensors, 3 if quick else 15):
                yield line
            calls = CALLS if quick else 3 * CALLS
            measured, peers = await interleave(
                runs, partial(_call, transport, ours, calls), partial(bare.call_grpc, channel, SMALL, calls)
            )
            yield Case("stream", "small call", "ms", "lower", "grpc.aio unary").line(measured, peers)


async def _frame_sizes(transport: GrpcTransport, to: Endpoint, tensors: int, runs: int) -> list[Line]:
    measures = (partial(_send_frames, transport, to, tensors, kib << 10) for kib in FRAME_KIB)
    measured = await interleave(runs, *measures)
    return [
        Case("stream", f"frames of {kib} KiB", "GB/s", "higher").line(found)
        for kib, found in zip(FRAME_KIB, measured, strict=True)
    ]


async def _send(transport: GrpcTransport, to: Endpoint, tensors: int) -> float:
    """GB/s from tensor to tensor, over a stream of its own."""
    tensor = torch.randn(SHAPE)
    began = time.perf_counter()
    async with transport.stream(to, TAKE) as stream:
        hop = Hop(stream, {}, LIMIT)
        for index in range(tensors):
            headers, payload = await pack({"hidden": tensor}, "none")
            await hop.send(Microbatch(1, index, tensors, tensors, True, 1, headers), payload)
        await hop.finish()
        taken = await stream.receive()
    assert taken == str(tensors * tensor.numel()).encode()
    return tensors * TENSOR_BYTES / (time.perf_counter() - began) / 1e9


async def _take(stream: Stream, _: Caller) -> None:
    """Decode every tensor, and say how many elements there were."""
    hop, elements = Hop(stream, RULES, LIMIT), 0
    while (received := await hop.receive()) is not None:
        message, payload = received
        assert isinstance(message, Microbatch)
        elements += (await unpack(message.tensors, payload))["hidden"].numel()
    await stream.send(str(elements).encode())


async def _send_frames(transport: GrpcTransport, to: Endpoint, tensors: int, chunk_bytes: int) -> float:
    """GB/s of the same bytes in frames of another size; all the header says is the number of bytes."""
    payload = Payload([memoryview(bare.filled(TENSOR_BYTES))])
    header = str(TENSOR_BYTES).encode()
    began = time.perf_counter()
    async with transport.stream(to, FRAMES) as stream:
        for _ in range(tensors):
            for _, views in frames.chunks(payload, chunk_bytes):
                await stream.send(frames.join(header, *views))
        await stream.finish()
        assert await stream.receive() == str(tensors * TENSOR_BYTES).encode()
    return tensors * TENSOR_BYTES / (time.perf_counter() - began) / 1e9


async def _take_frames(stream: Stream, _: Caller) -> None:
    """Put the frames together, and say how many bytes there were."""
    assembler, offset, taken = Assembler(LIMIT), 0, 0
    while (frame := await stream.receive()) is not None:
        header, data = frames.split(frame)
        whole = assembler.add(Chunk(offset, int(header)), data)
        offset += len(data)
        if whole is not None:
            taken += len(whole)
            offset = 0
    await stream.send(str(taken).encode())


async def _call(transport: GrpcTransport, to: Endpoint, calls: int) -> float:
    """Milliseconds of one call, one after the other."""
    began = time.perf_counter()
    for _ in range(calls):
        await transport.call(to, ECHO, SMALL, Deadline.after(PATIENCE))
    return (time.perf_counter() - began) / calls * 1e3


async def _echo(request: bytes, _: Caller) -> bytes:
    return request


class Receiver:
    """The other process: listens in three ways."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self._endpoints = endpoints

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """Ours, bare gRPC, bare TCP."""
        return self._endpoints


@asynccontextmanager
async def open_receiver() -> AsyncIterator[Receiver]:
    """All three on ports of their own."""
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(open_transport())
        server = await stack.enter_async_context(transport.serve(bare.LOOPBACK))
        server.add(Service(SERVICE, {ECHO.name: _echo}, {TAKE.name: _take, FRAMES.name: _take_frames}))
        bare_grpc = await stack.enter_async_context(bare.serve_grpc())
        bare_tcp = await stack.enter_async_context(bare.serve_tcp())
        yield Receiver(server.endpoint, bare_grpc, bare_tcp)
