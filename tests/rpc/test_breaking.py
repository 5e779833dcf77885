"""What is under way to a peer that is lost ends at once; nothing else does."""

from __future__ import annotations

import asyncio

import pytest

from distqat.errors import UnreachableError
from distqat.ids import Endpoint
from distqat.rpc.breaking import BreakableTransport
from distqat.rpc.grpc import open_transport
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Deadline, Method, Service, Stream, Transport
from tests.support import run, run_virtual

NAME = "distqat.v1.Mute"
ASK = Method(NAME, "Ask")
TALK = Method(NAME, "Talk")


class Mute:
    """Takes what comes and never answers, as a stopped process does; or says everything again."""

    def __init__(self) -> None:
        self.is_silent = True
        self.asked = asyncio.Event()

    def service(self) -> Service:
        return Service(NAME, {"Ask": self.ask}, {"Talk": self.talk})

    async def ask(self, request: bytes, caller: Caller) -> bytes:
        await self._answer()
        return request

    async def talk(self, stream: Stream, caller: Caller) -> None:
        while (data := await stream.receive()) is not None:
            await self._answer()
            await stream.send(data)

    async def _answer(self) -> None:
        self.asked.set()
        if self.is_silent:
            await asyncio.Event().wait()


async def check(inner: Transport, serving: Transport, listen: Endpoint) -> None:
    mute, transport = Mute(), BreakableTransport(inner)

    async def call(to: Endpoint) -> bytes:
        return await transport.call(to, ASK, b"call", Deadline.after(60.0))

    async def talk(to: Endpoint) -> bytes | None:
        async with transport.stream(to, TALK) as stream:
            await stream.send(b"stream")
            return await stream.receive()

    async with serving.serve(listen) as server:
        server.add(mute.service())
        to = server.endpoint
        for way in (call, talk):
            waiting = asyncio.ensure_future(way(to))
            await mute.asked.wait()
            # Another peer's loss is none of theirs.
            transport.break_off(Endpoint(to.host, to.port + 1), "gone")
            await asyncio.sleep(0.05)
            assert not waiting.done()
            transport.break_off(to, "it is lost: silence")
            with pytest.raises(UnreachableError, match="it is lost: silence"):
                await waiting
            mute.asked.clear()
        # It is back: what begins now is not touched.
        mute.is_silent = False
        assert (await call(to), await talk(to)) == (b"call", b"stream")


def test_over_the_network_in_memory() -> None:
    async def scenario() -> None:
        network = Network(delay=0.01)
        await check(network.transport("alice"), network.transport("bob"), Endpoint("bob", 0))

    run_virtual(scenario())


def test_over_grpc() -> None:
    async def scenario() -> None:
        async with open_transport() as here, open_transport() as there:
            await check(here, there, Endpoint("127.0.0.1", 0))

    run(scenario())


def test_a_stream_on_which_nobody_waits_is_broken_for_whoever_comes() -> None:
    async def scenario() -> None:
        network = Network()
        mute, transport = Mute(), BreakableTransport(network.transport("alice"))
        async with network.transport("bob").serve(Endpoint("bob", 0)) as server:
            server.add(mute.service())
            async with transport.stream(server.endpoint, TALK) as stream:
                transport.break_off(server.endpoint, "gone")
                for wait in (stream.send(b"x"), stream.receive(), stream.finish()):
                    with pytest.raises(UnreachableError, match="gone"):
                        await wait

    run_virtual(scenario())


def test_a_tie_may_be_broken_again_before_whoever_waited_is_out() -> None:
    async def scenario() -> None:
        network = Network()
        mute, transport = Mute(), BreakableTransport(network.transport("alice"))

        async def talk(to: Endpoint) -> None:
            async with transport.stream(to, TALK) as stream:
                await stream.send(b"x")
                await stream.receive()

        async with network.transport("bob").serve(Endpoint("bob", 0)) as server:
            server.add(mute.service())
            waiting = asyncio.ensure_future(talk(server.endpoint))
            await mute.asked.wait()
            transport.break_off(server.endpoint, "gone")
            # It is told now, and has not run since.
            await asyncio.sleep(0)
            transport.break_off(server.endpoint, "gone")
            with pytest.raises(UnreachableError, match="gone"):
                await waiting

    run_virtual(scenario())


def test_a_time_out_of_the_caller_and_a_cancellation_stay_what_they_are() -> None:
    async def scenario() -> None:
        network = Network()
        mute, transport = Mute(), BreakableTransport(network.transport("alice"))
        async with network.transport("bob").serve(Endpoint("bob", 0)) as server:
            server.add(mute.service())
            async with transport.stream(server.endpoint, TALK) as stream:
                await stream.send(b"x")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await stream.receive()
                waiting = asyncio.ensure_future(stream.receive())
                await asyncio.sleep(0.1)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

    run_virtual(scenario())
