"""Mutated frames on a hop: nothing but a MessageError, and no memory beyond the limit."""

from __future__ import annotations

import asyncio
import math
import random
import tracemalloc
from collections.abc import Sequence

import pytest
import torch

from distqat.errors import MessageError
from distqat.ids import PeerId
from distqat.pipeline.hop import UPWARD, Hop
from distqat.pipeline.messages import Fault, Gradient, Opened, Outcome, to_frames
from distqat.wire import tensors
from distqat.wire.codecs.learned import CodedTensor, Form
from distqat.wire.compression import Compression
from distqat.wire.frames import CHUNK_BYTES

LIMIT = CHUNK_BYTES + (64 << 10)
"""Of a message here: a little more than a frame."""

SLACK = 4 << 20
"""Bytes for all else: the frames themselves, and what a decoded tensor may be larger than its codes."""


class Script:
    """A stream that brings these frames and ends."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._frames = iter(frames)

    async def receive(self) -> bytes | None:
        return next(self._frames, None)

    async def send(self, data: bytes, more: bool = False) -> None:
        raise NotImplementedError

    async def finish(self) -> None:
        raise NotImplementedError


def conversations() -> list[list[bytes]]:
    """What may come up a hop, as frames: small messages, tensors in one frame and in two, compressed and not."""
    found = []
    for size, codec, compression in (
        (50, "none", None),
        (50, "int8", None),
        (2_000, "int4", None),
        (20_000, "none", Compression("on")),
        (CHUNK_BYTES // 4 + 100, "none", None),
    ):
        gradient = torch.arange(size, dtype=torch.float32).remainder(3)
        headers, payload = tensors.encode({"gradient": gradient}, codec, compression)
        assert bool(headers[0].raw) is (compression is not None)
        message = Gradient(3, 1, tuple(headers), (0.5, 2.0))
        found.append([*to_frames(Opened(1)), *to_frames(message, payload), *to_frames(Outcome(3, 0, {"loss": 1}))])
    for form, shape in ((Form(5, is_signed=False, has_offset=True), (50,)), (Form(2, is_per_channel=True), (9, 200))):
        codes = torch.arange(math.prod(shape)).remainder(1 << form.bits).to(torch.uint8).view(shape)
        heads = torch.full((2, form.num_steps(shape)), 0.25)
        coded = CodedTensor(form, codes, heads[0], heads[1] if form.has_offset else None, torch.float32)
        headers, payload = tensors.encode({"gradient": coded}, form.name)
        message = Gradient(3, 1, tuple(headers), (0.5, 2.0))
        found.append([*to_frames(Opened(1)), *to_frames(message, payload), *to_frames(Outcome(3, 0, {"loss": 1}))])
    found.append([*to_frames(Opened(1)), *to_frames(Fault(PeerId("a"), "HopError", "gone"))])
    return found


def mutated(frame: bytes, draw: random.Random) -> bytes:
    """One to four changes, most of them near the front, where tags, lengths and headers are."""
    changed = bytearray(frame)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(min(len(changed), draw.choice((12, 120, 1 << 21)))) if changed else 0
        match draw.randrange(5):
            case 0 if changed:
                changed[place] = draw.randrange(256)
            case 1 if changed:
                changed[place] ^= 1 << draw.randrange(8)
            case 2:
                changed[place:place] = draw.randbytes(draw.randint(1, 12))
            case 3:
                del changed[place : place + draw.randint(1, 12)]
            case 4:
                del changed[place:]
    return bytes(changed)


async def hear(frames: Sequence[bytes]) -> int:
    """Receive and decode everything; the number of messages. Raises MessageError."""
    hop, heard = Hop(Script(frames), UPWARD, LIMIT), 0
    while (received := await hop.receive()) is not None:
        message, payload = received
        assert len(payload) <= LIMIT
        if isinstance(message, Gradient):
            assert tensors.raw_bytes(message.tensors) <= LIMIT
            tensors.decode(message.tensors, payload)
        heard += 1
    return heard


async def fuzz(count: int, seed: int) -> tuple[int, int]:
    """Mutate so many frames; how many conversations were refused, and how many not."""
    draw, originals, refused, taken = random.Random(seed), conversations(), 0, 0
    # The large ones take longest and have no other headers.
    weights = [20, 20, 20, 10, 1, 20, 20, 10]
    for _ in range(count):
        frames = list(draw.choices(originals, weights)[0])
        place = draw.randrange(len(frames))
        frames[place] = mutated(frames[place], draw)
        if draw.randrange(8) == 0:
            draw.shuffle(frames)
        try:
            await hear(frames)
            taken += 1
        except MessageError:
            refused += 1
    return refused, taken


def check(count: int, seed: int) -> None:
    refused, taken = asyncio.run(fuzz(count, seed))
    assert refused + taken == count
    assert min(refused, taken) > count / 20  # Mutations of both kinds were tried.


def test_what_is_mutated_is_understood_otherwise() -> None:
    assert [asyncio.run(hear(frames)) for frames in conversations()] == [3, 3, 3, 3, 3, 3, 3, 2]


def test_20000_mutated_frames() -> None:
    check(20_000, seed=11)


def test_no_mutation_makes_a_hop_take_more_memory_than_its_limit() -> None:
    tracemalloc.start()
    try:
        asyncio.run(fuzz(2000, seed=12))
        assert tracemalloc.get_traced_memory()[1] < 2 * LIMIT + SLACK
    finally:
        tracemalloc.stop()


@pytest.mark.soak
def test_a_million_mutated_frames() -> None:
    for seed in range(10):
        check(100_000, seed)
