"""The first frame of an exchange is noted, and nothing else is."""

from __future__ import annotations

import time

from bench.timed import TimedTransport
from distqat.averaging.messages import AVERAGING, EXCHANGE
from distqat.ids import Endpoint
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Deadline, Method, Service, Stream
from tests.support import run_virtual

ASK = Method(AVERAGING, "Ask")
OTHER = Method("distqat.v1.Other", "Other")


async def echo(stream: Stream, caller: Caller) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)


async def answer(request: bytes, caller: Caller) -> bytes:
    return request


def test_only_frames_of_an_exchange_count() -> None:
    async def scenario() -> None:
        network = Network()
        timed = TimedTransport(network.transport("alice"))
        async with network.transport("bob").serve(Endpoint("bob", 0)) as server:
            server.add(Service(AVERAGING, {ASK.name: answer}, {EXCHANGE.name: echo}))
            server.add(Service(OTHER.service, streams={OTHER.name: echo}))
            assert await timed.call(server.endpoint, ASK, b"1", Deadline.after(1.0)) == b"1"
            assert await round_trip(timed, server.endpoint, OTHER) == b"2"
            assert timed.first is None
            frames: list[float | None] = []
            timed.on_frame = lambda: frames.append(timed.first)
            before = time.monotonic()
            assert await round_trip(timed, server.endpoint, EXCHANGE) == b"2"
            assert timed.first is not None
            assert before <= timed.first <= time.monotonic()
            first = timed.first
            await round_trip(timed, server.endpoint, EXCHANGE)
            assert timed.first == first, "the first one stands"
            assert frames == [first, first]
            assert timed.traffic()["averaging"].sent == 3

    run_virtual(scenario())


async def round_trip(transport: TimedTransport, to: Endpoint, method: Method) -> bytes | None:
    async with transport.stream(to, method) as stream:
        await stream.send(b"2")
        received = await stream.receive()
        await stream.finish()
        return received
