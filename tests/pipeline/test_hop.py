"""Whole messages over a stream: chunks, order, and what may come when."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
import torch

from distqat.errors import MessageError
from distqat.ids import Endpoint, PeerId, PipelineId, RunId, Seat, StageIndex
from distqat.pipeline.hop import DOWNWARD, INLINE_BYTES, NO_BYTES, UPWARD, Hop, Phase, Rules, pack, unpack
from distqat.pipeline.messages import (
    Commit,
    Committed,
    Fault,
    Gradient,
    Message,
    Microbatch,
    Open,
    Opened,
    Outcome,
    Ping,
    Pong,
    to_frames,
)
from distqat.wire import frames
from distqat.wire.compression import Compression
from distqat.wire.payload import Payload
from tests.support import run, run_virtual

OPEN = Open(RunId("r", "d"), PipelineId("p"), 1, 0, (Seat(PeerId("a"), Endpoint("h", 1), StageIndex(0)),))
MAX_MESSAGE = 8 << 20


class Loop:
    """A stream whose sent messages are its received ones."""

    def __init__(self) -> None:
        self.messages: list[bytes | None] = []

    async def send(self, data: bytes, more: bool = False) -> None:
        self.messages.append(data)
        await asyncio.sleep(0)

    async def receive(self) -> bytes | None:
        return self.messages.pop(0)

    async def finish(self) -> None:
        self.messages.append(None)


def hop(rules: Rules, *sent: Message | bytes, limit: int = MAX_MESSAGE) -> Hop:
    """A hop that has these to receive."""
    loop = Loop()
    for item in sent:
        loop.messages += [item] if isinstance(item, bytes) else to_frames(item)
    loop.messages.append(None)
    return Hop(loop, rules, limit)


async def receive_all(end: Hop) -> list[Message]:
    messages = []
    while (received := await end.receive()) is not None:
        messages.append(received[0])
    return messages


def big(index: int, size: int) -> tuple[Gradient, Payload]:
    headers, payload = run(pack({"gradient": torch.full((size,), float(index))}, "none"))
    return Gradient(1, index, headers), payload


def test_frames_of_several_senders_do_not_mix() -> None:
    async def scenario() -> None:
        loop = Loop()
        sender, receiver = Hop(loop, DOWNWARD, MAX_MESSAGE), Hop(loop, UPWARD, MAX_MESSAGE)
        await sender.send(Opened(1))
        async with asyncio.TaskGroup() as group:
            for index in range(4):
                headers, payload = await pack({"gradient": torch.full((1_100_000,), float(index))}, "none")
                group.create_task(sender.send(Gradient(1, index, headers), payload))
                group.create_task(sender.send(Outcome(1, index)))
        await sender.finish()
        assert len(loop.messages) == 1 + 4 * 3 + 4 + 1
        assert await receiver.receive() == (Opened(1), NO_BYTES)
        for _ in range(8):
            received = await receiver.receive()
            assert received is not None
            message, data = received
            if isinstance(message, Gradient):
                named = await unpack(message.tensors, data)
                assert torch.equal(named["gradient"], torch.full((1_100_000,), float(message.index)))
        assert await receiver.receive() is None

    run(scenario())


@pytest.mark.parametrize(
    ("rules", "sent", "words"),
    [
        (DOWNWARD, [Commit(1, 1)], "Commit on a hop that is opening"),
        (DOWNWARD, [OPEN, OPEN], "Open on a hop that is open"),
        (DOWNWARD, [OPEN, Opened(1)], "Opened on a hop"),
        (UPWARD, [Outcome(1, 0)], "Outcome on a hop that is opening"),
        (UPWARD, [Opened(1), Commit(1, 1)], "Commit on a hop"),
        (UPWARD, [Fault(PeerId("a"), "X", "y"), Committed(1)], "Committed on a hop that is broken"),
    ],
)
def test_a_message_out_of_place_is_refused(rules: Rules, sent: list[Message], words: str) -> None:
    with pytest.raises(MessageError, match=words):
        run(receive_all(hop(rules, *sent)))


def test_garbage_and_oversized_frames_are_refused() -> None:
    with pytest.raises(MessageError, match="not a frame"):
        run(receive_all(hop(DOWNWARD, b"\xff\x00garbage")))
    with pytest.raises(MessageError, match="at most"):
        run(receive_all(hop(DOWNWARD, OPEN, bytes(3 << 20))))
    message, payload = big(0, 1_100_000)
    with pytest.raises(MessageError, match="a message of 4400000 bytes"):
        run(receive_all(hop(UPWARD, Opened(1), *to_frames(message, payload), limit=1 << 20)))


def test_a_torn_message_is_refused() -> None:
    message, payload = big(0, 1_100_000)
    first, second, third = to_frames(message, payload)
    other = next(iter(to_frames(*big(1, 1_100_000))))
    with pytest.raises(MessageError, match="within a Gradient"):
        run(receive_all(hop(UPWARD, Opened(1), first, other)))
    with pytest.raises(MessageError, match="ended within a Gradient"):
        run(receive_all(hop(UPWARD, Opened(1), first, second)))
    with pytest.raises(MessageError, match="a chunk"):
        run(receive_all(hop(UPWARD, Opened(1), first, third)))


def test_a_fault_may_come_in_the_middle_of_a_message() -> None:
    message, payload = big(0, 1_100_000)
    fault = Fault(PeerId("c"), "UnreachableError", "gone")
    end = hop(UPWARD, Opened(1), next(iter(to_frames(message, payload))), fault)
    assert run(end.receive()) == (Opened(1), NO_BYTES)
    assert run(end.receive()) == (fault, NO_BYTES)
    assert end.phase is Phase.BROKEN


def test_a_payload_that_no_header_speaks_of_is_refused() -> None:
    (frame,) = to_frames(Commit(1, 1))
    header, _ = frames.split(frame)
    with pytest.raises(MessageError, match="does not speak of"):
        run(receive_all(hop(DOWNWARD, OPEN, frames.join(bytes(header), b"more"))))


def test_headers_are_equal_in_all_frames_of_a_message() -> None:
    headers, payload = run(pack({"inputs": torch.zeros(1_100_000)}, "none"))
    first = Microbatch(1, 0, 2, 8, True, 4, headers)
    other = Microbatch(1, 1, 2, 8, True, 4, headers)
    mixed = [next(iter(to_frames(first, payload))), *list(to_frames(other, payload))[1:]]
    with pytest.raises(MessageError, match="within a Microbatch"):
        run(receive_all(hop(DOWNWARD, OPEN, *mixed)))


@pytest.mark.parametrize("size", [3, INLINE_BYTES])
def test_tensors_survive_both_ways_of_packing(size: int) -> None:
    named = {"hidden": torch.randn(size), "labels": torch.arange(4)}

    async def scenario() -> dict[str, torch.Tensor]:
        headers, payload = await pack(named, "none")
        return await unpack(headers, memoryview(bytearray(bytes(payload))))

    back = run(scenario())
    assert list(back) == list(named)
    assert all(torch.equal(back[name], named[name]) for name in named)


class Road(Loop):
    """A stream that takes its time: so many bytes per second."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.more: list[bool] = []
        self.bytes = 0

    async def send(self, data: bytes, more: bool = False) -> None:
        await asyncio.sleep(len(data) / self.rate)
        self.more.append(more)
        self.bytes += len(data)
        self.messages.append(data)


class Both:
    """What one end sends to the other, and what it receives from there."""

    def __init__(self, out: Loop, back: Loop) -> None:
        self.out = out
        self.back = back

    async def send(self, data: bytes, more: bool = False) -> None:
        await self.out.send(data, more)

    async def receive(self) -> bytes | None:
        return await self.back.receive()

    async def finish(self) -> None:
        await self.out.finish()


async def pinged(sender: Hop, receiver: Hop) -> None:
    """A ping and its answer."""
    await sender.send(Ping(1))
    received = await receiver.receive()
    assert received is not None
    assert isinstance(received[0], Ping)
    await receiver.send(Pong(1))
    await sender.receive()


async def travel(road: Road, hidden: torch.Tensor, codec: str, count: int) -> Hop:
    """Pack, send, receive and unpack it again and again; what arrives is what a codec alone would deliver."""
    back = Loop()
    sender = Hop(Both(road, back), UPWARD, MAX_MESSAGE, Compression("auto"))
    receiver = Hop(Both(back, road), DOWNWARD, MAX_MESSAGE)
    await sender.send(OPEN)
    assert await receiver.receive() == (OPEN, NO_BYTES)
    await receiver.send(Opened(0))
    await sender.receive()
    await pinged(sender, receiver)
    plain_headers, plain = await pack({"hidden": hidden}, codec)
    expected = await unpack(plain_headers, memoryview(bytes(plain)))
    for index in range(count):
        headers, payload = await pack({"hidden": hidden}, {"hidden": codec}, sender.compression)
        await sender.send(Microbatch(1, index, count, count, True, 1, headers), payload)
        received = await receiver.receive()
        assert received is not None
        assert isinstance(received[0], Microbatch)
        named = await unpack(received[0].tensors, received[1])
        assert torch.equal(named["hidden"], expected["hidden"])
        await pinged(sender, receiver)
    return sender


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_sparse_activations_shrink_on_a_slow_link_and_not_on_a_fast_one(codec: str) -> None:
    hidden = torch.randn(1 << 19, generator=torch.Generator().manual_seed(1)).relu()
    slow, fast, full = Road(2.5e6), Road(5e9), Road(2.5e6)
    sender = run_virtual(travel(slow, hidden, codec, 12))
    assert sender.compression.is_on
    assert sender.link_rate == pytest.approx(2.5e6, rel=0.05)
    assert not run_virtual(travel(fast, hidden, codec, 12)).compression.is_on
    assert slow.bytes < 0.75 * fast.bytes
    noise = torch.rand(1 << 19).mul(2**24).to(torch.int32)  # Which no codec and no zstd makes smaller by much.
    sender = run_virtual(travel(full, noise, "none", 12))
    assert not sender.compression.is_on or sender.compression.statistics().ratio < 0.95


def test_nobody_waits_for_the_end_of_a_payload() -> None:
    road = Road(1e9)
    run_virtual(travel(road, torch.zeros(1_100_000), "none", 2))
    assert road.more == [False, False, *[True] * 3, False, *[True] * 3, False]


def test_tensors_that_would_grow_beyond_the_limit_are_refused() -> None:
    headers, payload = run(pack({"gradient": torch.zeros(1_100_000)}, "none", Compression("on")))
    assert headers[0].raw == 4_400_000
    assert len(payload) < 10_000
    sent = to_frames(Gradient(1, 0, headers), payload)
    with pytest.raises(MessageError, match="4400000 bytes of tensors"):
        run(receive_all(hop(UPWARD, Opened(1), *sent, limit=1 << 20)))


def test_a_header_with_a_number_that_is_none_repeats_like_any_other() -> None:
    message, payload = big(0, 1_100_000)
    message = replace(message, square_norms=(math.nan, math.inf))
    received = run(receive_all(hop(UPWARD, Opened(1), *to_frames(message, payload))))
    assert repr(received[1]) == repr(message)


def test_what_travels_as_it_is_is_not_copied() -> None:
    hidden = torch.zeros(1_100_000)
    _, payload = run(pack({"hidden": hidden, "labels": torch.arange(3)}, "none", Compression("auto")))
    hidden[0] = 1.0
    assert bytes(payload)[:4] != bytes(4)
    message, payload = big(3, 1_100_000)
    end = hop(UPWARD, Opened(1), *to_frames(message, payload))

    async def scenario() -> None:
        await end.receive()
        received = await end.receive()
        assert received is not None
        named = await unpack(message.tensors, received[1])
        received[1][:4] = bytes(4)
        assert named["gradient"][:2].tolist() == [0.0, 3.0]

    run(scenario())
