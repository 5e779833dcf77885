"""What every transport promises of calls, over gRPC and over the network in memory."""

from __future__ import annotations

import asyncio

import pytest

from distqat.errors import (
    DeadlineError,
    DistqatError,
    GoneError,
    MessageError,
    RefusedError,
    RemoteError,
    RouteError,
    StaleError,
    TensorError,
    UnreachableError,
    WrongRunError,
)
from distqat.ids import Endpoint
from distqat.rpc.transport import Deadline, Method, Service
from tests.contract.worlds import (
    CHAT,
    ECHO,
    FAIL,
    HANG,
    LEFT,
    NAME,
    WORLDS,
    World,
    chat,
    soon,
)

pytestmark = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)

MIB = 1 << 20


def test_a_call_is_answered(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            assert await pair.echo(b"hello") == b"hello"
            assert await pair.echo(b"") == b""
            assert pair.trial.callers[0].address

    world.run(main())


def test_a_frame_of_one_mebibyte_passes_both_ways(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            frame = bytes(range(256)) * (MIB // 256)
            assert await pair.echo(frame) == frame
            async with chat(pair) as stream:
                await stream.send(frame)
                assert await stream.receive() == frame

    world.run(main())


def test_an_oversized_request_is_a_message_error_that_names_the_limit(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            with pytest.raises(MessageError, match=str(world.max_message)):
                await pair.echo(bytes(world.max_message + 1))
            async with chat(pair) as stream:
                with pytest.raises(MessageError, match=str(world.max_message)):
                    await stream.send(bytes(world.max_message + 1))
                await stream.send(b"the stream still works")
                assert await stream.receive() == b"the stream still works"

    world.run(main())


def test_an_oversized_answer_is_a_message_error_that_names_the_limit(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:

            async def big(request: bytes, caller: object) -> bytes:
                return bytes(world.max_message + 1)

            pair.server.add(Service("distqat.v1.Big", {"Big": big}))
            with pytest.raises(MessageError, match=str(world.max_message)):
                await pair.alice.call(pair.to, Method("distqat.v1.Big", "Big"), b"", Deadline.after(5))

    world.run(main())


def test_many_calls_at_once_get_their_own_answers(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(pair.echo(str(index).encode())) for index in range(50)]
            assert [task.result() for task in asked] == [str(index).encode() for index in range(50)]

    world.run(main())


@pytest.mark.parametrize("seconds", [0.9, 5.0, 123.456])
def test_the_deadline_is_handed_down(world: World, seconds: float) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            left = float(await pair.alice.call(pair.to, LEFT, b"", Deadline.after(seconds)))
            assert seconds - 0.5 < left < seconds

    world.run(main())


def test_a_call_ends_at_its_deadline_and_so_does_its_handler(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(DeadlineError, match=r"Trial\.Hang"):
                await pair.alice.call(pair.to, HANG, b"", Deadline.after(0.2))
            assert 0.19 <= loop.time() - began < 2.0
            await soon(pair.trial.ended)

    world.run(main())


def test_a_deadline_that_has_passed_is_an_error_at_once(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            with pytest.raises(DeadlineError):
                await pair.alice.call(pair.to, ECHO, b"", Deadline.after(-1))
            with pytest.raises(DeadlineError):
                async with chat(pair, CHAT, Deadline.after(-1)):
                    pass

    world.run(main())


@pytest.mark.parametrize(
    "kind", [UnreachableError, RefusedError, WrongRunError, TensorError, StaleError, RouteError, MessageError]
)
def test_an_error_crosses_as_what_it_was(world: World, kind: type[DistqatError]) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            message = "stage 1 of 2: größer, 50 % «so» – 変\nsecond line"
            with pytest.raises(kind) as caught:
                await pair.alice.call(pair.to, FAIL, f"{kind.__name__}:{message}".encode(), Deadline.after(5))
            assert type(caught.value) is kind
            assert caught.value.reason == message

    world.run(main())


def test_a_very_long_message_is_cut_but_crosses(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            with pytest.raises(StaleError, match=r"^変変変"):
                await pair.alice.call(pair.to, FAIL, f"StaleError:{'変' * 20_000}".encode(), Deadline.after(5))

    world.run(main())


def test_a_fault_in_a_handler_is_a_remote_error_and_harms_nobody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            with pytest.raises(RemoteError, match="KeyError: 'no such thing'"):
                await pair.alice.call(pair.to, FAIL, b"?:no such thing", Deadline.after(5))
            assert await pair.echo(b"still there") == b"still there"

    world.run(main())
    assert "a handler of distqat.v1.Trial failed" in caplog.text


def test_errors_of_a_task_group_in_a_handler_cross_as_the_first_of_them(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:

            async def grouped(request: bytes, caller: object) -> bytes:
                raise ExceptionGroup("tasks", [RouteError("hop 2 broke")])

            pair.server.add(Service("distqat.v1.Group", {"Run": grouped}))
            with pytest.raises(RouteError, match="hop 2 broke"):
                await pair.alice.call(pair.to, Method("distqat.v1.Group", "Run"), b"", Deadline.after(5))

    world.run(main())


@pytest.mark.parametrize("method", [Method("distqat.v1.Nothing", "Echo"), Method(NAME, "Nothing")], ids=str)
def test_what_is_not_served_is_refused_by_name(world: World, method: Method) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            with pytest.raises(RefusedError, match="Nothing"):
                await pair.alice.call(pair.to, method, b"", Deadline.after(5))
            with pytest.raises(RefusedError, match="Nothing"):
                async with chat(pair, method):
                    pass

    world.run(main())


def test_nobody_listening_is_gone_for_sure(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            nobody = Endpoint(pair.to.host, 1)
            with pytest.raises(GoneError, match=str(nobody)):
                await pair.alice.call(nobody, ECHO, b"", Deadline.after(5))
            with pytest.raises(GoneError, match=str(nobody)):
                async with pair.alice.stream(nobody, CHAT):
                    pass

    world.run(main())


def test_a_caller_that_is_cancelled_cancels_the_handler(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(pair.alice.call(pair.to, HANG, b"", Deadline.after(60)))
                await soon(pair.trial.started)
                asking.cancel()
            assert asking.cancelled()
            await soon(pair.trial.ended)
            assert await pair.echo(b"on") == b"on"

    world.run(main())
