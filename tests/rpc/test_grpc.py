"""What only the real transport has: foreign peers, versions, connections, lanes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from distqat.errors import DeadlineError, MessageError, NotDistqatError, ProtocolError, UnreachableError
from distqat.ids import Endpoint
from distqat.rpc import headers
from distqat.rpc.grpc import open_transport
from distqat.rpc.loop import run as run_on_uvloop
from distqat.rpc.transport import PROTOCOL_VERSION, Deadline, Lane, Method
from tests.contract.worlds import CHAT, ECHO, HANG, NAME, SINK, STALL, Pair, Trial, soon
from tests.proxy import open_proxy
from tests.rpc.tcp import Behaviour, garbage, http, silence, tcp_server
from tests.support import run, until

LOOPBACK = Endpoint("127.0.0.1", 0)


@asynccontextmanager
async def open_pair() -> AsyncIterator[Pair]:
    async with open_transport() as alice, open_transport() as bob, bob.serve(LOOPBACK) as server:
        trial = Trial()
        server.add(trial.service())
        yield Pair(alice, bob, server, trial)


async def ask(channel: grpc.aio.Channel, path: str) -> bytes:
    asking: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return await asking(b"hello", timeout=5)


def test_another_protocol_version_is_refused_and_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "write", lambda *_: ((headers.VERSION_KEY, "99"),))

    async def main() -> None:
        async with open_pair() as pair:
            both = rf"version 99 .*127\.0\.0\.1:{pair.to.port} speaks version {PROTOCOL_VERSION}"
            with pytest.raises(ProtocolError, match=both):
                await pair.echo(b"hello")
            with pytest.raises(ProtocolError, match=both):
                async with pair.alice.stream(pair.to, CHAT):
                    pass
            assert pair.trial.callers == []

    run(main())


def test_a_caller_without_a_version_is_refused() -> None:
    async def main() -> None:
        async with open_pair() as pair, grpc.aio.insecure_channel(str(pair.to)) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="no version") as caught:
                await ask(channel, ECHO.path)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    run(main())


def test_a_service_that_is_not_of_distqat_is_unimplemented_as_anywhere() -> None:
    async def main() -> None:
        async with open_pair() as pair, grpc.aio.insecure_channel(str(pair.to)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(channel, "/weather.Forecast/Ask")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(main())


@pytest.mark.parametrize("left", ["soon", "nan", "inf"])
def test_a_garbage_deadline_is_a_message_error(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    good = headers.write(None)
    monkeypatch.setattr(headers, "write", lambda *_: (*good, (headers.LEFT_KEY, left)))

    async def main() -> None:
        async with open_pair() as pair:
            with pytest.raises(MessageError, match=f"'{left}'"):
                await pair.echo(b"hello")

    run(main())


@pytest.mark.parametrize("behaviour", [garbage, http], ids=["garbage", "http"])
def test_an_address_that_is_not_distqat_is_told_from_one_where_nobody_is(behaviour: Behaviour) -> None:
    async def main() -> None:
        async with open_transport() as alice, tcp_server(behaviour) as to:
            with pytest.raises(NotDistqatError, match=rf"^{to} answers, but it is not distqat"):
                await alice.call(to, ECHO, b"hello", Deadline.after(5))
            with pytest.raises(NotDistqatError, match=str(to)):
                async with alice.stream(to, CHAT):
                    pass

    run(main())


def test_a_foreign_grpc_server_is_not_distqat() -> None:
    async def main() -> None:
        server = grpc.aio.server()
        to = Endpoint("127.0.0.1", server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        async with open_transport() as alice:
            with pytest.raises(NotDistqatError, match=str(to)):
                await alice.call(to, ECHO, b"hello", Deadline.after(5))
            with pytest.raises(NotDistqatError, match=str(to)):
                async with alice.stream(to, CHAT):
                    pass
        await server.stop(None)

    run(main())


def test_an_address_that_accepts_and_stays_silent_ends_at_the_deadline() -> None:
    async def main() -> None:
        async with open_transport() as alice, tcp_server(silence) as to:
            with pytest.raises(DeadlineError):
                await alice.call(to, ECHO, b"hello", Deadline.after(0.3))
            with pytest.raises(DeadlineError):
                async with alice.stream(to, CHAT, Deadline.after(0.3)):
                    pass

    run(main())


def test_a_stream_that_nobody_accepts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqat.rpc.grpc.OPEN_TIMEOUT", 0.2)

    async def main() -> None:
        async with open_transport() as alice, tcp_server(silence) as to:
            with pytest.raises(DeadlineError, match="not accepted"):
                async with alice.stream(to, CHAT):
                    pass

    run(main())


def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    async def main() -> None:
        async with open_transport() as alice:
            with pytest.raises(UnreachableError, match=r"no-such-host\.invalid"):
                await alice.call(Endpoint("no-such-host.invalid", 4000), ECHO, b"hello", Deadline.after(5))

    run(main())


def test_garbage_does_not_harm_a_server() -> None:
    async def main() -> None:
        async with open_pair() as pair:
            for noise in (
                b"GET / HTTP/1.1\r\n\r\n",
                bytes(range(256)) * 64,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
            ):
                reader, writer = await asyncio.open_connection(pair.to.host, pair.to.port)
                writer.write(noise)
                async with asyncio.timeout(5):
                    while await reader.read(1 << 16):
                        pass
                writer.close()
                await writer.wait_closed()
            assert await pair.echo(b"still there") == b"still there"

    run(main())


def test_a_connection_that_breaks_ends_both_ends_of_a_stream() -> None:
    async def main() -> None:
        async with (
            open_pair() as pair,
            open_proxy(pair.to) as wire,
            pair.alice.stream(wire.endpoint, STALL) as stream,
        ):
            await soon(pair.trial.started)
            wire.cut()
            with pytest.raises(UnreachableError, match=str(wire.endpoint)):
                await stream.receive()
            await soon(pair.trial.ended)

    run(main())


def test_a_connection_that_breaks_is_no_end_of_stream_for_a_handler() -> None:
    async def main() -> None:
        async with open_pair() as pair:
            async with open_proxy(pair.to) as wire, pair.alice.stream(wire.endpoint, CHAT) as stream:
                await stream.send(b"one")
                await stream.receive()
                wire.cut()
                with pytest.raises(UnreachableError):
                    await stream.receive()
            await pair.server.remove(NAME)
            assert pair.trial.chatted == 0

    run(main())


def test_each_lane_has_a_connection_of_its_own_and_keeps_it() -> None:
    async def main() -> None:
        async with open_pair() as pair:
            for lane in (*Lane, *Lane):
                await pair.alice.call(pair.to, Method(NAME, "Echo", lane), b"", Deadline.after(5))
            addresses = [caller.address for caller in pair.trial.callers]
            assert addresses[: len(Lane)] == addresses[len(Lane) :]
            assert len(set(addresses)) == len(Lane) == 3

    run(main())


@pytest.mark.parametrize("lane", [Lane.CONTROL, Lane.HOP])
def test_a_full_bulk_lane_does_not_delay_the_others(lane: Lane) -> None:
    async def main() -> None:
        async with open_pair() as pair, pair.alice.stream(pair.to, Method(NAME, SINK.name, Lane.BULK)) as stream:

            async def flood() -> None:
                while True:
                    await stream.send(bytes(1 << 20))

            async with asyncio.TaskGroup() as group:
                flooding = group.create_task(flood())
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(flooding), 0.5)
                loop = asyncio.get_running_loop()
                began = loop.time()
                echo = Method(NAME, "Echo", lane)
                assert await pair.alice.call(pair.to, echo, b"heartbeat", Deadline.after(5)) == b"heartbeat"
                assert loop.time() - began < 0.5
                flooding.cancel()

    run(main())


def test_a_transport_that_closes_fails_its_calls_without_cancelling_their_tasks() -> None:
    async def main() -> None:
        async with open_transport() as bob, bob.serve(LOOPBACK) as server, asyncio.TaskGroup() as group:
            trial = Trial()
            server.add(trial.service())
            async with open_transport() as alice:

                async def ask() -> None:
                    with pytest.raises(UnreachableError, match="closed"):
                        await alice.call(server.endpoint, HANG, b"", Deadline.after(60))

                asking = group.create_task(ask())
                await soon(trial.started)
            await asking
            assert not asking.cancelled()

    run(main())


def test_both_ends_run_on_uvloop() -> None:
    async def main() -> None:
        async with open_pair() as pair:
            assert await pair.echo(b"hello") == b"hello"
            async with pair.alice.stream(pair.to, CHAT) as stream:
                await stream.send(b"one")
                assert await stream.receive() == b"one"
            assert "uvloop" in type(asyncio.get_running_loop()).__module__

    run_on_uvloop(main())


def test_repr_and_statistics_show_what_is_going_on() -> None:
    async def main() -> None:
        async with open_transport() as alice, alice.serve(LOOPBACK) as server:
            assert repr(alice) == "<GrpcTransport 0 connections>"
            assert repr(server) == f"<GrpcServer {server.endpoint}: no service>"
            trial = Trial()
            server.add(trial.service())
            async with alice.stream(server.endpoint, STALL) as stream:
                await soon(trial.started)
                assert repr(stream) == "<CallerStream Trial.Stall>"
                assert alice.statistics().num_connections == 1
                assert server.statistics().services == (NAME,)
                assert server.statistics().num_running == 1
            await until(lambda: server.statistics().num_running == 0)

    run(main())


def test_importing_the_room_pulls_no_torch() -> None:
    script = (
        "import sys, distqat.rpc.grpc, distqat.rpc.local, distqat.rpc.loop, distqat.rpc.mirror\n"
        "sys.exit(','.join(name for name in ('torch', 'numpy') if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
