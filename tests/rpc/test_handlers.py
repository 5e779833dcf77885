"""Handlers of a server: tracked, joined, and their errors told."""

from __future__ import annotations

import asyncio

import pytest

from distqat.errors import RefusedError, RemoteError, StaleError, TensorError, UnreachableError
from distqat.rpc.handlers import Handlers, again, rebuild
from distqat.rpc.transport import Caller, Service
from tests.support import run_virtual

CALLER = Caller("test", None)


async def echo(request: bytes, caller: Caller) -> bytes:
    return request


def test_it_finds_who_answers_and_refuses_by_name() -> None:
    async def main() -> None:
        async with Handlers.open("here:1") as handlers:
            handlers.add(Service("distqat.v1.Echo", {"Echo": echo}))
            assert handlers.call("distqat.v1.Echo", "Echo") is echo
            for service, method in (("distqat.v1.Echo", "Other"), ("distqat.v1.Other", "Echo")):
                with pytest.raises(RefusedError, match=r"Other.* at here:1|at here:1.*Other"):
                    handlers.call(service, method)
            with pytest.raises(RefusedError, match="no stream Echo"):
                handlers.stream("distqat.v1.Echo", "Echo")
            assert repr(handlers) == "<Handlers of here:1: distqat.v1.Echo, 0 running>"

    run_virtual(main())


def test_a_waiter_that_leaves_cancels_the_handler() -> None:
    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def main() -> None:
        async with Handlers.open("here:1") as handlers:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handlers.run("distqat.v1.Echo", forever), 1)
            await ended.wait()
            assert handlers.num_running == 0

    run_virtual(main())


def test_a_handler_that_is_cancelled_before_it_began_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with Handlers.open("here:1") as handlers:
            task = handlers.start("distqat.v1.Echo", lambda: echo(b"", CALLER))
            task.cancel()
            with pytest.raises(UnreachableError, match="stopped"):
                await handlers.join("distqat.v1.Echo", task)

    run_virtual(main())


def test_closed_handlers_start_nothing() -> None:
    async def main() -> None:
        async with Handlers.open("here:1") as handlers:
            await handlers.close()
            with pytest.raises(UnreachableError, match="here:1 is closing"):
                handlers.start("distqat.v1.Echo", lambda: echo(b"", CALLER))

    run_virtual(main())


def test_a_handler_that_does_not_end_is_cancelled_again_and_named(caplog: pytest.LogCaptureFixture) -> None:
    cancelled = 0

    async def stubborn() -> None:
        nonlocal cancelled
        while cancelled < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1

    async def main() -> None:
        async with Handlers.open("here:1") as handlers:
            handlers.start("distqat.v1.Stubborn", stubborn)
            await asyncio.sleep(0)
        assert cancelled == 3

    run_virtual(main())
    assert "distqat.v1.Stubborn at here:1 does not end" in caplog.text


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (StaleError("old"), StaleError("old")),
        (ExceptionGroup("g", [ExceptionGroup("h", [TensorError("nan")]), StaleError("old")]), TensorError("nan")),
        (ExceptionGroup("g", [StaleError("old"), KeyError("x")]), RemoteError("Echo failed: ExceptionGroup: g (2")),
        (OSError("disk"), RemoteError("Echo failed: OSError: disk")),
    ],
    ids=["ours", "group of ours", "mixed group", "foreign"],
)
def test_what_a_caller_is_told(raised: Exception, told: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise raised

    async def main() -> None:
        async with Handlers.open("here:1") as handlers:
            with pytest.raises(type(told)) as caught:
                await handlers.run("Echo", fail)
            assert str(caught.value).startswith(str(told))

    run_virtual(main())
    assert ("a handler of Echo failed" in caplog.text) == isinstance(told, RemoteError)


def test_errors_are_rebuilt_by_the_name_of_their_class() -> None:
    assert repr(rebuild("StaleError", "old")) == repr(StaleError("old"))
    assert repr(rebuild("NewError", "unheard of")) == repr(RemoteError("NewError: unheard of"))
    first = StaleError("old")
    assert again(first) is not first
    assert repr(again(first)) == repr(first)
