"""The rest of a route, as whoever stands above it sees it: the trainer, or the expert of the stage before.

Every error that leaves this file is a HopError that names the peer at fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from distqat.errors import DistqatError, MessageError
from distqat.ids import Seat
from distqat.pipeline.hop import NO_PAYLOAD, UPWARD, Hop
from distqat.pipeline.messages import HOP, Fault, Message, Open, Opened
from distqat.pipeline.route import HopError, Limits, patience
from distqat.pipeline.watch import Watch
from distqat.rpc.transport import Transport


class Below:
    """An open hop to the next seat and everything behind it."""

    def __init__(self, seat: Seat, hop: Hop, watch: Watch) -> None:
        self.seat = seat
        self.watch = watch
        self.step = 0  # The step that the stages below have settled on; set when the route has opened.
        self._hop = hop

    def __repr__(self) -> str:
        return f"<Below {self.seat}, {self.watch}>"

    async def send(self, message: Message, payload: memoryview = NO_PAYLOAD) -> None:
        """Send down."""
        try:
            await self._hop.send(message, payload)
        except DistqatError as error:
            raise self.blame(error) from None

    async def receive(self) -> tuple[Message, memoryview] | None:
        """The next message from below; None when it has ended in order. A fault from there is raised."""
        try:
            received = await self._hop.receive()
        except DistqatError as error:
            raise self.blame(error) from None
        self.watch.heard()
        if received is not None and isinstance(received[0], Fault):
            raise HopError(received[0].reason, received[0].peer, received[0].kind)
        return received

    async def finish(self) -> None:
        """Say that no more will be sent."""
        try:
            await self._hop.finish()
        except DistqatError as error:
            raise self.blame(error) from None

    async def wait_dead(self) -> None:
        """Raise HopError once an answer has been owed for too long in silence."""
        await self.watch.wait_silent()
        raise self.blame("DeadlineError", f"no progress: not a word for {self.watch.seconds:.1f} s")

    def blame(self, fault: DistqatError | str, reason: str = "") -> HopError:
        """The error that names the next seat, unless `fault` names a peer already."""
        if isinstance(fault, HopError):
            return fault
        kind, why = (fault, reason) if isinstance(fault, str) else (type(fault).__name__, fault.reason)
        return HopError(f"{self.seat}: {why}", self.seat.peer, kind)


@asynccontextmanager
async def open_below(transport: Transport, opening: Open, limits: Limits) -> AsyncIterator[Below]:
    """Open the hop to the first of the seats, and through it the others; raises HopError."""
    seat, num_stages = opening.seats[0], opening.seats[-1].stage + 1
    watch = Watch(patience(limits.stall, num_stages, seat.stage))
    wait = patience(limits.open, num_stages, seat.stage)
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(wait):
                stream = await stack.enter_async_context(transport.stream(seat.endpoint, HOP))
                below = Below(seat, Hop(stream, UPWARD, limits.max_message), watch)
                await below.send(opening)
                below.step = await _opened(below, opening)
        except TimeoutError:
            raise HopError(f"{seat}: did not open within {wait:.1f} s", seat.peer, "DeadlineError") from None
        except HopError:
            raise
        except DistqatError as error:
            raise HopError(f"{seat}: {error.reason}", seat.peer, type(error).__name__) from None
        yield below


async def _opened(below: Below, opening: Open) -> int:
    received = await below.receive()
    if received is None:
        raise below.blame("UnreachableError", "ended the stream instead of opening the route")
    message = received[0]
    if not isinstance(message, Opened) or message.step not in (opening.step, opening.step + 1):
        raise below.blame(MessageError(f"{message} in answer to a route at step {opening.step}"))
    return message.step
