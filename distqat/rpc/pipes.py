"""The streams of the network in memory: two one-way pipes, ordered, bounded, with a delay; they break as one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from distqat.errors import DistqatError, MessageError, RpcError
from distqat.rpc.handlers import again
from distqat.rpc.traffic import Meter

PIPE_MESSAGES = 64
"""Messages under way in one direction of a stream; a sender waits for room."""

PIPE_BYTES = 4 << 20
"""Bytes under way in one direction of a stream; one message always has room."""


@dataclass(frozen=True)
class _End:
    """The sender has finished; with an error if it failed."""

    error: DistqatError | None = None


class Pipe:
    """One direction of a stream."""

    def __init__(self, delay: Callable[[int], float]) -> None:
        self._delay = delay  # Seconds under way of the next message, which has so many bytes.
        self._last_arrival = 0.0  # No message overtakes the one before it.
        self._under_way: deque[bytes | _End] = deque()  # Sent and not arrived.
        self._arrived: deque[bytes | _End] = deque()  # Arrived and not received.
        self._bytes = 0  # Of both.
        self._broken: DistqatError | None = None  # What both ends see; None while it holds.
        self._changed = asyncio.Event()  # Set whenever anything above changes.

    def __repr__(self) -> str:
        state = f"broken: {self._broken}" if self._broken else f"{len(self)} messages, {self._bytes} bytes"
        return f"<Pipe {state}>"

    def __len__(self) -> int:
        return len(self._under_way) + len(self._arrived)

    async def put(self, data: bytes) -> None:
        """Wait for room, then send."""
        await self._until(lambda: not len(self) or (len(self) < PIPE_MESSAGES and self._bytes < PIPE_BYTES))
        self._bytes += len(data)
        self._depart(data)

    def end(self, error: DistqatError | None = None) -> None:
        """Say that no more comes; what is under way still arrives before that."""
        if self._broken is None:
            self._depart(_End(error))

    async def get(self) -> bytes | None:
        """Wait for the next message; None at the end. Raises the error that it ended with."""
        await self._until(lambda: bool(self._arrived))
        item = self._arrived[0]
        if isinstance(item, _End):
            if item.error is not None:
                raise again(item.error)
            return None
        self._arrived.popleft()
        self._bytes -= len(item)
        self._wake()
        return item

    def break_off(self, error: DistqatError) -> None:
        """Both ends fail with this from now on; what is under way is lost."""
        if self._broken is None:
            self._broken = error
            self._under_way.clear()
            self._arrived.clear()
            self._wake()

    def _depart(self, item: bytes | _End) -> None:
        loop = asyncio.get_running_loop()
        size = 0 if isinstance(item, _End) else len(item)
        self._last_arrival = max(self._last_arrival, loop.time() + self._delay(size))
        self._under_way.append(item)
        if self._last_arrival <= loop.time():
            self._arrive()
        else:
            loop.call_at(self._last_arrival, self._arrive)

    def _arrive(self) -> None:
        if self._under_way:
            # Whichever timer fires first delivers the oldest: timers of one moment have no order among them.
            self._arrived.append(self._under_way.popleft())
            self._wake()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while True:
            if self._broken is not None:
                raise again(self._broken)
            if condition():
                return
            self._changed.clear()
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()


class LocalStream:
    """One end of a stream in memory."""

    def __init__(self, flow: str, outgoing: Pipe, incoming: Pipe, meter: Meter, max_message: int) -> None:
        self.flow = flow
        self.outgoing = outgoing
        self.incoming = incoming
        self._meter = meter
        self._max_message = max_message
        self._finished = False  # This end sends no more.

    def __repr__(self) -> str:
        return f"<LocalStream {self.flow} out {self.outgoing} in {self.incoming}>"

    async def send(self, data: bytes, more: bool = False) -> None:
        """Send one message; waits while the other side is not keeping up."""
        if self._finished:
            raise RpcError(f"this side of the {self.flow} stream has finished sending")
        message = checked(data, self._max_message)
        await self.outgoing.put(message)
        self._meter.sent(self.flow, message)

    async def receive(self) -> bytes | None:
        """The next message, or None when the other side has finished sending."""
        message = await self.incoming.get()
        if message is not None:
            self._meter.received(self.flow, message)
        return message

    async def finish(self) -> None:
        """Say that no more will be sent."""
        if not self._finished:
            self._finished = True
            self.outgoing.end()


def checked(data: bytes, limit: int) -> bytes:
    """The message as bytes of its own; raises MessageError if it is too large."""
    if len(data) > limit:
        raise MessageError(f"a message of {len(data)} bytes; at most {limit} are taken")
    return bytes(data)
