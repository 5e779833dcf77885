"""What comes in on a stream over gRPC: one task reads a little ahead of whoever receives.

While a message is taken apart the next one is already on its way through gRPC, and a receive that is cancelled loses
nothing, since it never was the one that read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from distqat.errors import UnreachableError
from distqat.rpc.handlers import Outcome, again

AHEAD = 2
"""Messages that are read and not received."""

Read = Callable[[], Awaitable[Outcome[bytes | None]]]


class Inflow:
    """The messages of one stream. `read` brings the next one, None at a proper end, or the error that it ended with."""

    def __init__(self, name: str, read: Read, group: asyncio.TaskGroup) -> None:
        self.name = name
        self._read = read
        self._group = group  # Owns the task.
        self._task: asyncio.Task[None] | None = None  # Reads; None before anyone wanted it to.
        self._arrived: deque[bytes] = deque()  # Read and not received.
        self._over: Outcome[bytes | None] | None = None  # How reading has ended; None before.
        self._news = asyncio.Event()  # Set when something has arrived or reading is over.
        self._room = asyncio.Event()  # Set when something was received.

    def __repr__(self) -> str:
        return f"<Inflow {self.name} {len(self._arrived)}/{AHEAD}{' over' if self._over is not None else ''}>"

    def start(self) -> None:
        """Read from now on."""
        if self._task is None:
            self._task = self._group.create_task(self._pump(), name=f"{self.name} read")

    async def get(self) -> bytes | None:
        """The next message, None after the last one. Raises the error that the stream ended with."""
        self.start()
        while not self._arrived:
            if self._over is not None:
                if self._over.error is not None:
                    raise again(self._over.error)
                return None
            self._news.clear()
            await self._news.wait()
        self._room.set()
        return self._arrived.popleft()

    async def idle(self, seconds: float) -> None:
        """Wait, but not for ever, until reading is over or stands still because nobody receives."""
        try:
            async with asyncio.timeout(seconds):
                while self._over is None and len(self._arrived) < AHEAD:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        """Read no more; the owner's group joins the task."""
        if self._task is not None:
            self._task.cancel()

    async def _pump(self) -> None:
        # Stays so if the task is cancelled, by `close` or by gRPC.
        over: Outcome[bytes | None] = Outcome(error=UnreachableError(f"the {self.name} stream is closed"))
        try:
            while True:
                read = await self._read()
                if read.error is not None or read.value is None:
                    over = read
                    return
                self._arrived.append(read.value)
                self._news.set()
                while len(self._arrived) >= AHEAD:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._over = over
            self._news.set()
