"""Tensors on their way over a hop: coded beside the computation, measured, and never taken for silence."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from distqat.ids import Endpoint
from distqat.pipeline import freight
from distqat.pipeline.freight import Freight
from distqat.pipeline.hop import pack, unpack
from distqat.pipeline.hop_codecs import HopCodecs
from distqat.pipeline.host import unwatched
from distqat.pipeline.messages import Gradient, Message, Microbatch
from distqat.pipeline.pace import Pace
from distqat.pipeline.route import HopError
from distqat.rpc.local import Network
from distqat.rpc.transport import Method, Stream, Transport
from distqat.rpc.wrapped import WrappedStream, WrappedTransport
from distqat.timeline import Timelines
from distqat.times import DOWN, UP
from distqat.wire.compression import Compression
from distqat.wire.payload import NO_PAYLOAD, Payload
from distqat.wire_sections import WireSection
from tests.pipeline.swarm import LIMITS, MLP, PIPELINE, Recipe, open_swarm
from tests.pipeline.test_latency import DEEP, measure
from tests.pipeline.timed import COMPUTE, open_timed
from tests.support import run_virtual

CODING = COMPUTE / 2
"""Seconds that a slow codec takes, each way."""


@pytest.fixture
def slow_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow_pack(*args: Any) -> Any:
        await asyncio.sleep(CODING)
        return await pack(*args)

    async def slow_unpack(*args: Any) -> Any:
        await asyncio.sleep(CODING)
        return await unpack(*args)

    monkeypatch.setattr(freight, "pack", slow_pack)
    monkeypatch.setattr(freight, "unpack", slow_unpack)


@pytest.mark.usefixtures("slow_codec")
def test_coding_goes_on_beside_the_computation() -> None:
    stages, count = 3, 48

    async def scenario() -> list[float]:
        async with open_timed(DEEP, stages, Network()) as (swarm, _), swarm.open() as link:
            return (await measure(swarm, link, DEEP, count, 2)).seconds

    # Like a latency: it is there when a step fills and drains the pipeline, and hidden in between. One after the other
    # it would be another CODING * 4 for each microbatch.
    hidden = (count + stages - 1) * COMPUTE + 2 * (stages - 1) * 2 * CODING
    assert run_virtual(scenario(), debug=False)[1] <= hidden * 1.01


class SlowStream(WrappedStream):
    """A while for each part of a tensor, both ways."""

    async def send(self, data: bytes, more: bool = False) -> None:
        await self._pause(data)
        await super().send(data, more)

    async def receive(self) -> bytes | None:
        data = await super().receive()
        await self._pause(data)
        return data

    async def _pause(self, data: bytes | None) -> None:
        if data is not None and len(data) > 1 << 16:
            await asyncio.sleep(0.7)


class SlowTransport(WrappedTransport):
    def wrap_stream(self, stream: Stream, to: Endpoint, method: Method) -> Stream:
        return SlowStream(stream)


@pytest.mark.parametrize("slow", ["trainer", "expert0", "expert1"])
def test_a_long_message_on_a_slow_link_is_no_silence(slow: str) -> None:
    recipe = Recipe("mlp", MLP.shape, "cv", {"hidden": 4096, "depth": 2}, samples=512)
    wide = recipe.batch(1)
    if slow == "trainer":
        wide = {"inputs": wide["inputs"].repeat(80, 1, 1, 1), "labels": wide["labels"].repeat(80)}
        recipe = replace(recipe, options={"hidden": 4, "depth": 2})

    def wrap(transport: Transport, name: str) -> Transport:
        return SlowTransport(transport) if name == slow else transport

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        async with open_swarm(recipe, 3, replace(LIMITS, stall=2.0), wrap=wrap) as swarm, swarm.open() as link:
            began = loop.time()
            await link.train(1, wide, 1)
            return loop.time() - began

    # Longer than the longest patience.
    assert run_virtual(scenario(), debug=False) > 4.0


class Loop:
    """A side that gives back what was sent."""

    def __init__(self) -> None:
        self.compression = Compression("off")
        self.began = 0.0
        self.sent: list[tuple[Message, Payload]] = []

    async def send(self, message: Message, payload: Payload = NO_PAYLOAD) -> None:
        self.sent.append((message, payload))


def test_what_is_shipped_is_written_down() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        timeline = Timelines(loop.time, lambda *_: None).of(PIPELINE, "mlp/0", 0)
        side, pace, codecs = Loop(), Pace(2, 0, 8), HopCodecs("int8", "bf16")
        below = Freight("below", side, codecs, timeline, pace)
        assert repr(below) == "<Freight below: sends int8, takes bf16>"
        hidden, labels = torch.randn(4, 256), torch.arange(4)
        await below.ship(Microbatch(3, 1, 2, 8, True, 4), {"hidden": hidden, "labels": labels})
        message, payload = side.sent[0]
        assert isinstance(message, Microbatch)
        assert [header.codec for header in message.tensors] == ["int8", "none"]
        named = await Freight("above", side, codecs, timeline, pace).unload(message, memoryview(bytes(payload)))
        assert torch.equal(named["labels"], labels)
        torch.testing.assert_close(named["hidden"], hidden, rtol=0.05, atol=0.05)
        timeline.committed(3, below.link)
        spans = [(span.kind, span.microbatch, span.way, span.bytes, span.raw) for span in timeline.spans_of(3, 3)]
        raw = 4 * 256 * 4 + 4 * 8
        kinds = {"encode": raw, "send": raw, "receive": 0, "decode": raw}
        assert sorted(spans) == sorted((kind, 1, DOWN, len(payload), was) for kind, was in kinds.items())
        assert list(timeline.links) == [DOWN]
        await Freight("above", side, codecs, timeline, pace).ship(Gradient(3, 1), {"gradient": hidden})
        answer = side.sent[1][0]
        assert isinstance(answer, Gradient)
        assert [header.codec for header in answer.tensors] == ["bf16"]
        assert {span.way for span in timeline.spans_of(3, 3) if span.bytes == 4 * 256 * 2} == {UP}

    run_virtual(scenario())


@pytest.mark.parametrize(("width", "is_compressed"), [(256, False), (1 << 15, True)])
def test_what_is_too_small_for_zstd_is_not_called_compressed(width: int, is_compressed: bool) -> None:
    async def scenario() -> bool:
        timeline = Timelines(asyncio.get_running_loop().time, lambda *_: None).of(PIPELINE, "mlp/0", 0)
        side = Loop()
        side.compression = Compression("on")
        below = Freight("below", side, HopCodecs(), timeline, Pace(2, 0, 8))
        await below.ship(Microbatch(3, 1, 2, 8, True, 4), {"hidden": torch.zeros(4, width)})
        return below.link[DOWN].compressed

    assert run_virtual(scenario()) is is_compressed


def test_a_number_that_no_codec_takes_breaks_the_route_at_its_sender() -> None:
    async def scenario() -> HopError:
        async with open_swarm(MLP, 2, replace(LIMITS, wire=WireSection(inputs="int8"))) as swarm:
            async with swarm.open() as link:
                batch = MLP.batch(1)
                batch["inputs"][0] = torch.inf
                with pytest.raises(HopError) as caught:
                    await link.train(1, batch, 2)
            return caught.value

    error = run_virtual(scenario())
    assert (error.kind, error.peer) == ("TensorError", "trainer")


def test_nobody_looks_at_what_is_unwatched() -> None:
    timeline = unwatched().of(PIPELINE, "mlp/0", 0)
    assert timeline.committed(1).step == 1
