"""What the standard library's asyncio lacks here: a bounded mailbox, backoff, and a supervisor. Nothing else."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from distqat.errors import DistqatError, GivenUpError, OverloadedError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A bounded, named queue between tasks of one loop."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self._queue: asyncio.Queue[T] = asyncio.Queue(capacity)

    def __repr__(self) -> str:
        return f"<Mailbox {self.name} {self._queue.qsize()}/{self._queue.maxsize}>"

    def __len__(self) -> int:
        return self._queue.qsize()

    async def put(self, item: T) -> None:
        """Wait for room, then add."""
        await self._queue.put(item)

    def put_nowait(self, item: T) -> None:
        """Add; raises OverloadedError when full."""
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            raise OverloadedError(f"{self.name} is full ({self._queue.maxsize} items)") from None

    async def get(self) -> T:
        """Wait for the oldest item and take it."""
        return await self._queue.get()


@dataclass
class Backoff:
    """Growing, jittered pauses between attempts: `first` seconds, doubled each time, at most `most`."""

    first: float = 0.1
    most: float = 5.0
    random: random.Random | None = None
    attempts: int = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        # The exponent is bounded, since a float is: after 1024 attempts the power would overflow.
        whole = min(self.most, self.first * 2.0 ** min(self.attempts, 64))
        self.attempts += 1
        draw = self.random.random() if self.random is not None else random.random()
        return whole * (0.5 + draw / 2)

    def reset(self) -> None:
        """An attempt succeeded."""
        self.attempts = 0


async def supervise(
    name: str,
    work: Callable[[], Awaitable[None]],
    backoff: Backoff,
    on_failure: Callable[[BaseException], None] | None = None,
    most: int | None = None,
) -> None:
    """Run `work` until it returns; when it fails, log why, pause and run it again.

    After `most` failures in a row that are no retriable errors (None: any number) it raises GivenUpError, and for one
    that comes from within at once.
    One of the two places that may catch every exception: a failing remote peer, or a fault in the code that deals with
    it, must not take a whole daemon down. Cancellation passes through.
    """
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        began = loop.time()
        try:
            return await work()
        except Exception as failure:
            error = _alone(failure)
            expected = isinstance(error, DistqatError)
            log.warning("%s failed: %s", name, str(error) or type(error).__name__, exc_info=None if expected else error)
            if on_failure is not None:
                on_failure(error)
            if isinstance(error, GivenUpError):
                raise error from None
            is_first = loop.time() - began > backoff.most or (expected and getattr(error, "retriable", False))
            failures = 1 if is_first else failures + 1
            if failures == most:
                why = str(error) or type(error).__name__
                raise GivenUpError(f"given up after {most} failures in a row: {why}") from None
        if loop.time() - began > backoff.most:
            backoff.reset()
        await asyncio.sleep(backoff.next())


def _alone(error: Exception) -> Exception:
    """What a task group wrapped, if it is one thing: its message says what happened, that of the group does not."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
