"""What goes out on a stream over gRPC: one task writes, so that the next message is made while the last one leaves.

Only this task waits for gRPC. A sender that is cancelled cuts nothing in half: a message goes out whole or not at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from distqat.errors import DistqatError, UnreachableError
from distqat.rpc.handlers import again

AHEAD = 1
"""Messages that wait while another is being written."""

Write = Callable[[bytes], Awaitable[DistqatError | None]]


class Outflow:
    """The messages of one stream. `write` hands one to gRPC, or returns why that cannot be done any more."""

    def __init__(self, name: str, write: Write, group: asyncio.TaskGroup) -> None:
        self.name = name
        self._write = write
        self._group = group  # Owns the task.
        self._task: asyncio.Task[None] | None = None  # Writes; None before the first message.
        self._waiting: deque[bytes] = deque()  # Not begun.
        self._is_writing = False  # One more is under way.
        self._error: DistqatError | None = None  # Why no more can be written; None while it can.
        self._work = asyncio.Event()  # Set when a message waits.
        self._room = asyncio.Event()  # Set when a message has left, or no more can.

    def __repr__(self) -> str:
        state = f"broken: {self._error}" if self._error else f"{len(self._waiting) + self._is_writing}/{AHEAD + 1}"
        return f"<Outflow {self.name} {state}>"

    async def put(self, message: bytes) -> None:
        """Wait for room, then leave the message to the task. Raises why an earlier one could not be written."""
        await self._until(AHEAD)
        self._waiting.append(message)
        self._work.set()
        if self._task is None:
            self._task = self._group.create_task(self._pump(), name=f"{self.name} write")

    async def drain(self) -> None:
        """Wait until all messages are with gRPC. Raises why one of them could not be written."""
        await self._until(1)
        while self._is_writing:
            await self._next()
        self._check()

    def close(self) -> None:
        """Write no more; the owner's group joins the task."""
        if self._task is not None:
            self._task.cancel()

    async def _until(self, room: int) -> None:
        """Wait until fewer than that many messages wait."""
        self._check()
        while len(self._waiting) >= room:
            await self._next()
            self._check()

    async def _next(self) -> None:
        self._room.clear()
        await self._room.wait()

    def _check(self) -> None:
        if self._error is not None:
            raise again(self._error)

    async def _pump(self) -> None:
        # Stays so if the task is cancelled, by `close` or by gRPC.
        error: DistqatError | None = UnreachableError(f"the {self.name} stream is closed")
        try:
            while True:
                while not self._waiting:
                    self._work.clear()
                    await self._work.wait()
                message = self._waiting.popleft()
                self._is_writing = True
                self._room.set()
                failure = await self._write(message)
                self._is_writing = False
                self._room.set()
                if failure is not None:
                    error = failure
                    return
        finally:
            self._is_writing = False
            self._error = error
            self._room.set()
