"""How async tests run: in real time, or on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from distqat.rpc.virtual import VirtualTimeLoop

T = TypeVar("T")


def run(coro: Coroutine[Any, Any, T], timeout: float = 30.0) -> T:
    """Run in real time, in debug mode, for at most `timeout` seconds."""

    async def limited() -> T:
        async with asyncio.timeout(timeout):
            return await coro

    return asyncio.run(limited(), debug=True)


def run_virtual(coro: Coroutine[Any, Any, T], timeout: float | None = None, debug: bool = True) -> T:
    """Run in virtual time for at most `timeout` virtual seconds; large simulations go without the slow debug mode.

    Without a limit, tasks that wait for nothing end in DeadlockError.
    """

    async def limited() -> T:
        async with asyncio.timeout(timeout):
            return await coro

    with asyncio.Runner(debug=debug, loop_factory=VirtualTimeLoop) as runner:
        return runner.run(limited())


async def until(condition: Callable[[], object], timeout: float = 10.0, pause: float = 0.005) -> None:
    """Wait until `condition()` is true; raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while True:
            if condition():
                return
            await asyncio.sleep(pause)
