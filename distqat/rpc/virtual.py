"""A clock that jumps: simulations and tests wait for nothing, and hours pass in moments."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DIGITS = 9
"""Of a second, behind the point: virtual time is whole nanoseconds."""


class DeadlockError(RuntimeError):
    """Every task waits, and nothing is left that could wake one."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock starts at 0 and jumps to the next timer when nothing else is ready.

    Time is whole nanoseconds, and no timer is early. To asyncio one that is due within the resolution of its clock is
    due now. A real clock moves on all the same; here two tasks that wait for one moment would wake each other for ever.

    The clock stands still while a job of an executor runs, and within `hold()`: work in threads takes no virtual time.
    Without a timer it waits for sockets and threads like any other loop; if there are none either, it raises
    DeadlockError. Debug mode and `call_soon_threadsafe` work as usual.
    """

    def __init__(self) -> None:
        self._now = 0.0  # Virtual seconds since the loop was made.
        self._held = 0  # Jobs in threads that the clock waits for.
        super().__init__(_JumpingSelector(self._wait))
        self._clock_resolution = 0.5 * 10.0**-DIGITS

    def __repr__(self) -> str:
        return f"<VirtualTimeLoop {self._now:.6f} s>"

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in any loop, at the first whole nanosecond that is not before."""
        return super().call_at(_not_before(when), callback, *args, context=context)

    def stand_still(self, seconds: float) -> None:
        """Time goes by and nothing runs, as in a process that is stopped for a while."""
        self._now = round(self._now + seconds, DIGITS)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The clock stands still within; for work in a thread that the loop cannot know of."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As in any loop; the clock stands still until the job is done."""
        future = super().run_in_executor(executor, func, *args)
        self._held += 1
        future.add_done_callback(self._job_done)
        return future

    def _job_done(self, _: asyncio.Future[Any]) -> None:
        self._held -= 1

    def _wait(self, selector: _JumpingSelector, timeout: float | None) -> float | None:
        """Decide how long to wait really, after moving the clock; None is without limit."""
        if self._held:
            return timeout if timeout is not None and timeout <= 0 else None
        if timeout is None:
            # Only the loop's own wake-up socket, and no other thread that could use it: nobody will ever come.
            if len(selector.get_map()) <= 1 and threading.active_count() == 1:
                if selector.is_ready():
                    # The last thread woke the loop and ended, all since the look before.
                    return 0.0
                raise DeadlockError(f"every task waits at {self._now:.6f} s, and nothing is left to wake one")
            return None
        self._now = round(self._now + max(0.0, timeout), DIGITS)
        return 0.0


def _not_before(when: float) -> float:
    rounded = round(when, DIGITS)
    return rounded if rounded >= when else round(rounded + 10.0**-DIGITS, DIGITS)


class _JumpingSelector(selectors.DefaultSelector):
    """Asks the loop how long to wait, once nothing is ready."""

    def __init__(self, wait: Callable[[_JumpingSelector, float | None], float | None]) -> None:
        super().__init__()
        self._ask = wait

    def is_ready(self) -> bool:
        """Whether there is an event now."""
        return bool(super().select(0))

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        really = self._ask(self, timeout)
        return super().select(really) if really is None or really > 0 else []
