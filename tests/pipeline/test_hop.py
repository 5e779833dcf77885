"""Whole messages over a stream: chunks, order, and what may come when."""

from __future__ import annotations

import asyncio

import pytest
import torch

from distqat.errors import MessageError
from distqat.ids import Endpoint, PeerId, PipelineId, RunId, Seat, StageIndex
from distqat.pipeline.hop import DOWNWARD, INLINE_BYTES, NO_PAYLOAD, UPWARD, Hop, Phase, Rules, pack, unpack
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
    to_frames,
)
from distqat.wire import frames
from tests.support import run

OPEN = Open(RunId("r", "d"), PipelineId("p"), 1, 0, (Seat(PeerId("a"), Endpoint("h", 1), StageIndex(0)),))
MAX_MESSAGE = 8 << 20


class Loop:
    """A stream whose sent messages are its received ones."""

    def __init__(self) -> None:
        self.messages: list[bytes | None] = []

    async def send(self, data: bytes) -> None:
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


def big(index: int, size: int) -> tuple[Gradient, memoryview]:
    headers, payload = run(pack({"gradient": torch.full((size,), float(index))}, "none"))
    return Gradient(1, index, headers), payload


def test_frames_of_several_senders_do_not_mix() -> None:
    async def scenario() -> None:
        loop = Loop()
        sender, receiver = Hop(loop, DOWNWARD, MAX_MESSAGE), Hop(loop, UPWARD, MAX_MESSAGE)
        await sender.send(Opened(1))
        async with asyncio.TaskGroup() as group:
            for index in range(4):
                headers, payload = await pack({"gradient": torch.full((600_000,), float(index))}, "none")
                group.create_task(sender.send(Gradient(1, index, headers), payload))
                group.create_task(sender.send(Outcome(1, index, True)))
        await sender.finish()
        assert len(loop.messages) == 1 + 4 * 3 + 4 + 1
        assert await receiver.receive() == (Opened(1), NO_PAYLOAD)
        for _ in range(8):
            received = await receiver.receive()
            assert received is not None
            message, payload = received
            if isinstance(message, Gradient):
                named = await unpack(message.tensors, payload)
                assert torch.equal(named["gradient"], torch.full((600_000,), float(message.index)))
        assert await receiver.receive() is None

    run(scenario())


@pytest.mark.parametrize(
    ("rules", "sent", "words"),
    [
        (DOWNWARD, [Commit(1, 1)], "Commit on a hop that is opening"),
        (DOWNWARD, [OPEN, OPEN], "Open on a hop that is open"),
        (DOWNWARD, [OPEN, Opened(1)], "Opened on a hop"),
        (UPWARD, [Outcome(1, 0, True)], "Outcome on a hop that is opening"),
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
        run(receive_all(hop(DOWNWARD, OPEN, bytes(2 << 20))))
    message, payload = big(0, 600_000)
    with pytest.raises(MessageError, match="a message of 2400000 bytes"):
        run(receive_all(hop(UPWARD, Opened(1), *to_frames(message, payload), limit=1 << 20)))


def test_a_torn_message_is_refused() -> None:
    message, payload = big(0, 600_000)
    first, second, third = to_frames(message, payload)
    other = next(iter(to_frames(*big(1, 600_000))))
    with pytest.raises(MessageError, match="within a Gradient"):
        run(receive_all(hop(UPWARD, Opened(1), first, other)))
    with pytest.raises(MessageError, match="ended within a Gradient"):
        run(receive_all(hop(UPWARD, Opened(1), first, second)))
    with pytest.raises(MessageError, match="a chunk"):
        run(receive_all(hop(UPWARD, Opened(1), first, third)))


def test_a_fault_may_come_in_the_middle_of_a_message() -> None:
    message, payload = big(0, 600_000)
    fault = Fault(PeerId("c"), "UnreachableError", "gone")
    end = hop(UPWARD, Opened(1), next(iter(to_frames(message, payload))), fault)
    assert run(end.receive()) == (Opened(1), NO_PAYLOAD)
    assert run(end.receive()) == (fault, NO_PAYLOAD)
    assert end.phase is Phase.BROKEN


def test_a_payload_that_no_header_speaks_of_is_refused() -> None:
    (frame,) = to_frames(Commit(1, 1))
    header, _ = frames.split(frame)
    with pytest.raises(MessageError, match="does not speak of"):
        run(receive_all(hop(DOWNWARD, OPEN, frames.join(bytes(header), b"more"))))


def test_headers_are_equal_in_all_frames_of_a_message() -> None:
    headers, payload = run(pack({"inputs": torch.zeros(600_000)}, "none"))
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
        return await unpack(headers, payload)

    back = run(scenario())
    assert list(back) == list(named)
    assert all(torch.equal(back[name], named[name]) for name in named)
