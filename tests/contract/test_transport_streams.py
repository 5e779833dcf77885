"""What every transport promises of streams, over gRPC and over the network in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from distqat.errors import (
    DeadlineError,
    DistqatError,
    RouteError,
    RpcError,
    StaleError,
    UnreachableError,
)
from distqat.rpc import handlers
from distqat.rpc.transport import Caller, Deadline, Method, Service, Stream
from tests.contract.worlds import (
    BREAK,
    CHAT,
    NAME,
    SINK,
    STALL,
    WORLDS,
    World,
    chat,
    soon,
)

pytestmark = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)

MIB = 1 << 20


def test_a_stream_carries_messages_both_ways_in_order(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair) as stream:
            for index in range(20):
                await stream.send(str(index).encode())
            assert [await stream.receive() for _ in range(20)] == [str(index).encode() for index in range(20)]
            await stream.send(b"")
            assert await stream.receive() == b""

    world.run(main())


def test_after_finish_the_rest_is_received_and_then_none(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair) as stream:
            await stream.send(b"one")
            await stream.send(b"two")
            await stream.finish()
            await stream.finish()
            with pytest.raises(RpcError, match="finished"):
                await stream.send(b"three")
            assert [await stream.receive() for _ in range(4)] == [b"one", b"two", None, None]
            assert pair.trial.chatted == 1

    world.run(main())


def test_a_slow_reader_bounds_the_sender(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, SINK) as stream:
            sent = 0

            async def feed() -> None:
                nonlocal sent
                while True:
                    await stream.send(bytes(MIB))
                    sent += 1

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(feed(), 1.0)
            assert 0 < sent <= 32

    world.run(main())


def test_a_sender_goes_on_when_the_reader_does(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, SINK) as stream, asyncio.TaskGroup() as group:

            async def feed() -> None:
                for _ in range(40):
                    await stream.send(bytes(MIB))
                await stream.finish()

            group.create_task(feed())
            await soon(pair.trial.started)
            pair.trial.release.set()
            assert await stream.receive() == str(40 * MIB).encode()
            assert await stream.receive() is None

    world.run(main())


def test_a_send_that_is_cancelled_leaves_whole_messages(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, SINK) as stream, asyncio.TaskGroup() as group:
            sent = cancelled = 0
            while cancelled < 3:
                try:
                    await asyncio.wait_for(stream.send(bytes(MIB)), 0.3)
                    sent += 1
                except TimeoutError:
                    cancelled += 1
            pair.trial.release.set()
            group.create_task(stream.finish())
            total = int(await stream.receive() or b"")
            assert total % MIB == 0
            assert sent <= total // MIB <= sent + cancelled

    world.run(main())


def test_what_a_handler_sent_last_arrives_though_nobody_waited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "LINGER_TIMEOUT", 0.05)
    method = Method("distqat.v1.Talk", "Say")
    sent: list[int] = []
    returned = asyncio.Event()

    async def say(stream: Stream, _: Caller) -> None:
        with suppress(TimeoutError):
            while True:  # Until all buffers are full.
                await asyncio.wait_for(stream.send(bytes([len(sent)]) * MIB, more=True), 0.3)
                sent.append(len(sent))
        returned.set()

    async def main() -> None:
        async with world.pair() as pair:
            pair.server.add(Service(method.service, streams={method.name: say}))
            async with pair.alice.stream(pair.to, method) as stream:
                await soon(returned)
                await asyncio.sleep(0.2)  # For longer than a handler that has ended lingers.
                received = []
                while (message := await stream.receive()) is not None:
                    received.append(message[0])
            assert received == sent

    world.run(main())


def test_messages_that_are_sent_in_one_go_arrive_in_order(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair) as stream, asyncio.TaskGroup() as group:
            messages = [bytes([65 + index]) * (1 << 16) for index in range(20)]

            async def say() -> None:
                for message in messages[:-1]:
                    await stream.send(message, more=True)
                await stream.send(messages[-1])

            group.create_task(say())
            assert [await stream.receive() for _ in messages] == messages

    world.run(main())


def test_a_receive_that_is_cancelled_loses_nothing(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair) as stream:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await stream.receive()
            await stream.send(b"one")
            assert await stream.receive() == b"one"

    world.run(main())


@pytest.mark.parametrize("kind", [StaleError, RouteError])
def test_a_handler_that_fails_ends_the_stream_with_its_error(world: World, kind: type[DistqatError]) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, BREAK) as stream:
            first = f"{kind.__name__}:hop 1 broke".encode()
            await stream.send(first)
            assert await stream.receive() == first
            for _ in range(2):
                with pytest.raises(kind, match=r"^hop 1 broke$"):
                    await stream.receive()
            with pytest.raises(kind, match=r"^hop 1 broke$"):
                await stream.send(b"more")

    world.run(main())


def test_a_handler_that_returns_ends_the_stream(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:

            async def hello(stream: Stream, caller: object) -> None:
                await stream.send(b"hello")

            pair.server.add(Service("distqat.v1.Hello", streams={"Say": hello}))
            async with chat(pair, Method("distqat.v1.Hello", "Say")) as stream:
                assert [await stream.receive(), await stream.receive()] == [b"hello", None]
                with pytest.raises(UnreachableError, match="ended"):
                    await stream.send(b"more")

    world.run(main())


def test_a_caller_that_leaves_cancels_the_handler_which_is_joined(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            async with chat(pair, STALL):
                await soon(pair.trial.started)
            await soon(pair.trial.ended)
            assert pair.trial.joined == 1

    world.run(main())


def test_a_caller_that_leaves_is_not_taken_for_one_that_has_finished(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            for _ in range(20):
                async with chat(pair) as stream:
                    await stream.send(b"one")
                    await stream.receive()
            await pair.server.remove(NAME)
            assert pair.trial.chatted == 0

    world.run(main())


def test_an_error_in_the_body_leaves_a_stream_as_it_was_raised(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            with pytest.raises(ZeroDivisionError):
                async with chat(pair):
                    raise ZeroDivisionError

    world.run(main())


def test_a_stream_ends_at_its_deadline(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, STALL, Deadline.after(0.2)) as stream:
            with pytest.raises(DeadlineError, match=r"Trial\.Stall"):
                await stream.receive()
            await soon(pair.trial.ended)

    world.run(main())


def test_a_handler_knows_whether_its_stream_has_a_deadline(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            for deadline in (None, Deadline.after(60)):
                async with chat(pair, CHAT, deadline) as stream:
                    await stream.finish()
                    assert await stream.receive() is None
            without, within = pair.trial.callers
            assert without.deadline is None
            assert within.deadline is not None
            assert within.deadline.left() < 60

    world.run(main())
