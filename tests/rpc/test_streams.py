"""Where streams of gRPC are put right."""

from __future__ import annotations

import asyncio
from typing import cast

import grpc.aio
import pytest

from distqat.errors import DistqatError, MessageError, RefusedError, RemoteError, StaleError, UnreachableError
from distqat.ids import Endpoint
from distqat.rpc import endings, headers, inflow
from distqat.rpc.endings import FINISH
from distqat.rpc.grpc import open_transport
from distqat.rpc.handlers import LINGER_TIMEOUT, Outcome, task_group
from distqat.rpc.inflow import Inflow
from distqat.rpc.links import Links
from distqat.rpc.outflow import Outflow
from distqat.rpc.status import ERROR_KEY
from distqat.rpc.streams import HandlerStream, ServerContext
from distqat.rpc.transport import Method, Stream
from tests.contract.worlds import BREAK, CHAT, SINK, Trial, soon
from tests.rpc.test_grpc import LOOPBACK, open_pair
from tests.support import run, until

METHOD = Method("distqat.v1.Trial", "Chat")


class Script:
    """A gRPC context from which exactly these things are read."""

    def __init__(self, *messages: object) -> None:
        self.messages = list(messages)

    def peer(self) -> str:
        return "ipv4:10.0.0.1:4000"

    async def read(self) -> object:
        return self.messages.pop(0)


def test_an_end_that_was_not_said_is_a_caller_that_has_left() -> None:
    async def main() -> None:
        async with task_group() as group:
            context = cast(ServerContext, Script(b"one", grpc.aio.EOF))
            stream = HandlerStream(context, METHOD, Links(), 100, group)
            assert await stream.receive() == b"one"
            with pytest.raises(UnreachableError, match=r"caller of Trial\.Chat has left"):
                await stream.receive()

    run(main())


def test_an_end_that_was_said_stays_the_end() -> None:
    async def main() -> None:
        async with task_group() as group:
            context = cast(ServerContext, Script(b"one", FINISH))
            stream = HandlerStream(context, METHOD, Links(), 100, group)
            assert [await stream.receive() for _ in range(3)] == [b"one", None, None]

    run(main())


def test_a_message_that_stands_for_the_end_is_not_sent() -> None:
    async def main() -> None:
        async with open_pair() as pair, pair.alice.stream(pair.to, CHAT) as stream:
            for frame in (FINISH, endings.write(StaleError("over"))):
                with pytest.raises(MessageError, match="zero byte"):
                    await stream.send(frame)
            for message in (b"", bytes(2), b"\x00\x01", b"x\x00"):
                await stream.send(message)
                assert await stream.receive() == message

    run(main())


@pytest.mark.parametrize("error", [StaleError("step 3 is over"), StaleError(""), RemoteError("a\x00b \u00e9")])
def test_an_end_frame_carries_class_and_message_of_an_error(error: DistqatError) -> None:
    frame = endings.write(error)
    assert endings.is_end(frame)
    told = endings.read(frame).error
    assert (type(told), told and told.reason) == (type(error), error.reason)


def test_an_end_frame_of_garbage_is_a_remote_error() -> None:
    assert isinstance(endings.read(b"\x00Nonsense\xff").error, RemoteError)


def test_a_foreign_tool_sees_the_status_as_soon_as_it_closes_its_side() -> None:
    async def main() -> None:
        async with open_pair() as pair, grpc.aio.insecure_channel(str(pair.to)) as channel:
            opening: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(BREAK.path)
            call = opening(metadata=headers.write(None))
            await call.write(b"StaleError:the step is over")
            messages = [await call.read(), await call.read()]
            assert messages[1] == endings.write(StaleError("the step is over"))
            await call.done_writing()
            async with asyncio.timeout(LINGER_TIMEOUT / 2):
                assert await call.code() is grpc.StatusCode.ABORTED
            assert await call.details() == "the step is over"

    run(main())


class LateRefusal(grpc.GenericRpcHandler):
    """A server that refuses a stream in two parts: gRPC's empty metadata, and a while later why."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(self.refuse)

    async def refuse(self, _: object, context: ServerContext) -> None:
        await context.send_initial_metadata(())
        await asyncio.sleep(0.05)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such stream", ((ERROR_KEY, "RefusedError"),))


def test_a_refusal_whose_reason_comes_late_is_not_an_acceptance() -> None:
    async def main() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((LateRefusal(),))
        to = Endpoint("127.0.0.1", server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        try:
            async with open_transport() as alice:
                with pytest.raises(RefusedError, match="no such stream"):
                    async with alice.stream(to, CHAT):
                        pass
        finally:
            await server.stop(None)

    run(main())


class Slow:
    """A gRPC that takes one message at a time, when it is told to, until it breaks."""

    def __init__(self, breaks_at: int = 1 << 30) -> None:
        self.begun: list[bytes] = []
        self.go = asyncio.Semaphore(0)
        self.breaks_at = breaks_at

    async def write(self, message: bytes) -> DistqatError | None:
        self.begun.append(message)
        await self.go.acquire()
        return StaleError("over") if len(self.begun) > self.breaks_at else None


def test_the_next_message_is_made_while_one_leaves_and_no_more() -> None:
    async def main() -> None:
        async with task_group() as group:
            slow = Slow()
            flow = Outflow("Trial.Chat", slow.write, group)
            await flow.put(b"1")
            await flow.put(b"2")
            assert slow.begun == [b"1"]
            assert repr(flow) == "<Outflow Trial.Chat 2/2>"
            third = group.create_task(flow.put(b"3"))
            draining = group.create_task(flow.drain())
            await asyncio.wait({third, draining}, timeout=0.02)
            assert not third.done()
            slow.go.release()
            await third
            assert slow.begun == [b"1", b"2"]
            for _ in range(2):
                assert not draining.done()
                slow.go.release()
                await until(lambda: slow.begun[-1] == b"3")
            await draining
            flow.close()

    run(main())


def test_what_goes_wrong_is_told_to_all_who_send_from_then_on() -> None:
    async def main() -> None:
        async with task_group() as group:
            slow = Slow(breaks_at=1)
            flow = Outflow("Trial.Chat", slow.write, group)
            await flow.put(b"1")
            await flow.put(b"2")

            async def fail() -> None:
                with pytest.raises(StaleError, match="over"):
                    await flow.drain()

            failing = group.create_task(fail())
            slow.go.release()
            await flow.put(b"3")
            slow.go.release()
            await failing
            for _ in range(2):
                with pytest.raises(StaleError, match="over"):
                    await flow.put(b"4")
            assert slow.begun == [b"1", b"2"]

    run(main())


def test_a_reader_stays_a_little_ahead() -> None:
    async def main() -> None:
        async with task_group() as group:
            taken = iter(range(10))

            async def read() -> Outcome[bytes | None]:
                number = next(taken)
                return Outcome(str(number).encode() if number < 5 else None)

            flow = Inflow("Trial.Chat", read, group)
            assert await flow.get() == b"0"
            await flow.idle(1.0)
            assert repr(flow) == f"<Inflow Trial.Chat {inflow.AHEAD}/{inflow.AHEAD}>"
            assert next(taken) == 1 + inflow.AHEAD
            assert [await flow.get() for _ in range(3)] == [b"1", b"2", b"4"]
            assert [await flow.get(), await flow.get()] == [None, None]
            assert repr(flow).endswith("over>")

    run(main())


def test_sends_and_receives_of_several_tasks_do_not_collide() -> None:
    async def main() -> None:
        async with open_pair() as pair, pair.alice.stream(pair.to, CHAT) as stream:
            async with asyncio.TaskGroup() as group:
                received = [group.create_task(stream.receive()) for _ in range(10)]
                for index in range(10):
                    group.create_task(stream.send(str(index).encode()))
            assert sorted(task.result() or b"" for task in received) == [str(index).encode() for index in range(10)]

    run(main())


async def fill(stream: Stream) -> None:
    while True:
        await stream.send(bytes(1 << 20))


@pytest.mark.parametrize("what", ["send", "receive"])
def test_a_transport_that_closes_fails_its_streams_without_cancelling_their_tasks(what: str) -> None:
    async def main() -> None:
        async with open_transport() as bob, bob.serve(LOOPBACK) as server, asyncio.TaskGroup() as group:
            trial = Trial()
            server.add(trial.service())
            waiting = asyncio.Event()
            async with open_transport() as alice:

                async def use() -> None:
                    async with alice.stream(server.endpoint, SINK) as stream:
                        waiting.set()
                        with pytest.raises(UnreachableError, match="closed"):
                            await (fill(stream) if what == "send" else stream.receive())

                using = group.create_task(use())
                await soon(waiting)
                await asyncio.wait({using}, timeout=0.3)  # Until the stream is full.
            await using
            assert not using.cancelled()

    run(main())
