"""What goes around a transport changes nothing but what it was made for."""

from __future__ import annotations

import pytest

from distqat.errors import DistqatError
from distqat.ids import Endpoint
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Deadline, Method, Service, Stream, Transport
from distqat.rpc.wrapped import WrappedStream, WrappedTransport
from tests.support import run_virtual

NAME = "distqat.v1.Echo"
ASK = Method(NAME, "Ask")
TALK = Method(NAME, "Talk")


async def ask(request: bytes, caller: Caller) -> bytes:
    return request


async def talk(stream: Stream, caller: Caller) -> None:
    while (data := await stream.receive()) is not None:
        await stream.send(data)


ECHO = Service(NAME, {"Ask": ask}, {"Talk": talk})


async def said(transport: Transport, to: Endpoint) -> list[bytes | None]:
    """What comes back by a call, by a stream, and after its end."""
    answer = await transport.call(to, ASK, b"call", Deadline.after(1.0))
    async with transport.stream(to, TALK) as stream:
        await stream.send(b"stream")
        first = await stream.receive()
        await stream.finish()
        return [answer, first, await stream.receive()]


def test_as_it_stands_it_is_the_transport_that_it_is_around() -> None:
    async def scenario() -> None:
        network = Network()
        alice, bob = network.transport("alice"), network.transport("bob")
        wrapped = WrappedTransport(alice)
        async with WrappedTransport(bob).serve(Endpoint("bob", 0)) as server:
            server.add(ECHO)
            assert server.endpoint.port
            assert await said(wrapped, server.endpoint) == [b"call", b"stream", None]
            await server.remove(NAME)
            with pytest.raises(DistqatError, match="is not served"):
                await said(wrapped, server.endpoint)
        assert wrapped.traffic() == alice.traffic() != {}
        assert (wrapped.uplink(), wrapped.downlink()) == (alice.uplink(), alice.downlink())

    run_virtual(scenario())


class LoudStream(WrappedStream):
    async def send(self, data: bytes, more: bool = False) -> None:
        await super().send(data.upper(), more)


class Loud(WrappedTransport):
    def wrap_stream(self, stream: Stream, to: Endpoint, method: Method) -> Stream:
        return LoudStream(stream)

    def wrap_service(self, service: Service) -> Service:
        async def answer(request: bytes, caller: Caller) -> bytes:
            return request.upper()

        return Service(service.name, {"Ask": answer}, service.streams)


def test_streams_that_it_opens_and_services_that_it_serves_can_be_stepped_into() -> None:
    async def scenario() -> None:
        network = Network()
        async with Loud(network.transport("bob")).serve(Endpoint("bob", 0)) as server:
            server.add(ECHO)
            assert await said(network.transport("alice"), server.endpoint) == [b"CALL", b"stream", None]
            assert await said(Loud(network.transport("carol")), server.endpoint) == [b"CALL", b"STREAM", None]

    run_virtual(scenario())
