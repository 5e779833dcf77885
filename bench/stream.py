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
BARE_KIB = (512, 1024, 2048, 4096)
"""Sizes that are tried."""
CALLS = 300
SMALL = bytes(64)
LIMIT = 1 << 30
PATIENCE = 60.0


async def bench(quick: bool) -> AsyncIterator[Line]:
    """All ways of moving the same bytes take turns, and so do both ways of calling."""
    runs, tensors = (7, 8) if quick else (25, 16)
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(open_worker("receiver", open_receiver))
        taker = await stack.enter_async_context(open_worker("bare receiver", bare.open_receiver))
        endpoints = await taker.ask("endpoints")
        peer = await stack.enter_async_context(open_worker("bare sender", bare.open_sender, *endpoints, TENSOR_BYTES))
        transport = await stack.enter_async_context(open_transport())
        to = await receiver.ask("endpoint")
        measured, tcp, *sizes = await interleave(
            runs,
            partial(_send, transport, to, torch.randn(SHAPE), tensors),
            partial(peer.ask, "send_tcp", tensors),
            *(partial(peer.ask, "send_grpc", kib << 10, tensors) for kib in BARE_KIB),
        )
        case = f"fp32 tensors of {TENSOR_BYTES >> 20} MiB"
        kib, best = max(zip(BARE_KIB, sizes, strict=True), key=lambda found: median(found[1]))
        title = f"grpc.aio, the same bytes cut beforehand, {kib} KiB each (its fastest)"
        yield Case("stream", case, "GB/s", "higher", title, Goal("ratio", 0.85)).line(measured, best)
        yield Case("stream", case, "GB/s", "higher", "TCP, bytes").line(measured, tcp)
        for line in await _frame_sizes(transport, to, tensors, 3 if quick else 15):
            yield line
        measured, peers = await interleave(
            runs, partial(_call, transport, to, CALLS), partial(peer.ask, "call", SMALL, CALLS)
        )
        yield Case("stream", "small call", "ms", "lower", "grpc.aio unary").line(measured, peers)


async def _frame_sizes(transport: GrpcTransport, to: Endpoint, tensors: int, runs: int) -> list[Line]:
    payload = Payload([memoryview(bare.filled(TENSOR_BYTES))])
    measures = (partial(_send_frames, transport, to, payload, tensors, kib << 10) for kib in FRAME_KIB)
    measured = await interleave(runs, *measures)
    return [
        Case("stream", f"frames of {kib} KiB", "GB/s", "higher").line(found)
        for kib, found in zip(FRAME_KIB, measured, strict=True)
    ]


async def _send(transport: GrpcTransport, to: Endpoint, tensor: torch.Tensor, tensors: int) -> float:
    """GB/s from tensor to tensor, over a stream of its own."""
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
    while taken := await _take_one(hop):
        elements += taken
    await stream.send(str(elements).encode())


async def _take_one(hop: Hop) -> int:
    """Elements of the next tensor; 0 at the end."""
    received = await hop.receive()
    if received is None:
        return 0
    message, payload = received
    assert isinstance(message, Microbatch)
    return (await unpack(message.tensors, payload))["hidden"].numel()


async def _send_frames(
    transport: GrpcTransport, to: Endpoint, payload: Payload, tensors: int, chunk_bytes: int
) -> float:
    """GB/s of the same bytes in frames of another size; all the header says is the number of bytes."""
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
    """The other process."""

    def __init__(self, at: Endpoint) -> None:
        self._at = at

    async def endpoint(self) -> Endpoint:
        """Where it listens."""
        return self._at


@asynccontextmanager
async def open_receiver() -> AsyncIterator[Receiver]:
    """On a port of its own."""
    async with open_transport() as transport, transport.serve(bare.LOOPBACK) as server:
        server.add(Service(SERVICE, {ECHO.name: _echo}, {TAKE.name: _take, FRAMES.name: _take_frames}))
        yield Receiver(server.endpoint)
