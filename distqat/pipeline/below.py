"""The rest of a route, as whoever stands above it sees it: the trainer, or the expert of the stage before.

Every error that leaves this file is a HopError that names the peer at fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from distqat.errors import DistqatError, MessageError
from distqat.ids import Seat
from distqat.model.agreement import Verdict
from distqat.pipeline.hop import UPWARD, Hop
from distqat.pipeline.messages import HOP
from distqat.pipeline.pace import Pace
from distqat.pipeline.route import HopError, Limits, patience
from distqat.pipeline.watch import Watch
from distqat.pipeline.words import AS_IT_IS, Fault, Message, Open, Opened, Pong
from distqat.rpc.transport import Transport
from distqat.wire.compression import Compression
from distqat.wire.payload import NO_PAYLOAD, Payload

FIRST_PING = 0.05
"""Seconds between the first two measurements of a link; each pause is twice the one before."""


class Below:
    """An open hop to the next seat and everything behind it."""

    def __init__(self, seat: Seat, hop: Hop, pace: Pace, watch: Watch) -> None:
        self.seat = seat
        self.watch = watch
        self.step = 0  # The step that the stages below have settled on; set when the route has opened.
        self.verdict: Verdict = AS_IT_IS  # On that step; set with it.
        self._hop = hop
        self._pace = pace
        self._ponged = asyncio.Event()  # Set while no ping waits for its answer.
        self._is_finished = False  # Nothing more may be sent.

    def __repr__(self) -> str:
        return f"<Below {self.seat}, {self.watch}>"

    @property
    def compression(self) -> Compression:
        """Of what goes down."""
        return self._hop.compression

    @property
    def began(self) -> float:
        """When the first frame of the message that came last, or is coming, was there."""
        return self._hop.began

    @property
    def touched(self) -> float:
        """When a part of a tensor came last."""
        return self._hop.touched

    async def send(self, message: Message, payload: Payload = NO_PAYLOAD) -> None:
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
        if received is not None and isinstance(received[0], Pong):
            # No sign of life: it says that the peer is there, not that it works.
            self._heard_pong(received[0])
            return received
        self.watch.heard()
        if received is not None and isinstance(received[0], Fault):
            raise HopError(received[0].reason, received[0].peer, received[0].kind)
        return received

    async def finish(self) -> None:
        """Say that no more will be sent."""
        self._is_finished = True
        try:
            await self._hop.finish()
        except DistqatError as error:
            raise self.blame(error) from None

    async def wait_dead(self) -> None:
        """Raise HopError once an answer has been owed for too long in silence."""
        await self.watch.wait_silent()
        raise self.blame("DeadlineError", f"no progress: not a word for {self.watch.seconds:.1f} s")

    async def keep_measuring(self, period: float) -> None:
        """Ask for the round trip again and again, at first often, until nothing more may be sent."""
        loop = asyncio.get_running_loop()
        pause = min(FIRST_PING, period)
        while not self._is_finished:
            self._ponged.clear()
            await self.send(self._pace.ping(loop.time()))
            await self._ponged.wait()
            await asyncio.sleep(pause)
            pause = min(2 * pause, period)

    def _heard_pong(self, pong: Pong) -> None:
        try:
            self._pace.answered(pong, asyncio.get_running_loop().time())
        except MessageError as error:
            raise self.blame(error) from None
        self._ponged.set()

    def blame(self, fault: DistqatError | str, reason: str = "") -> HopError:
        """The error that names the next seat, unless `fault` names a peer already."""
        if isinstance(fault, HopError):
            return fault
        kind, why = (fault, reason) if isinstance(fault, str) else (type(fault).__name__, fault.reason)
        return HopError(f"{self.seat}: {why}", self.seat.peer, kind)


@asynccontextmanager
async def open_below(transport: Transport, opening: Open, limits: Limits, pace: Pace) -> AsyncIterator[Below]:
    """Open the hop to the first of the seats, and through it the others; raises HopError. `pace` is the caller's."""
    seat, num_stages = opening.seats[0], opening.seats[-1].stage + 1
    wait = patience(limits.open, num_stages, seat.stage)
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(wait):
                stream = await stack.enter_async_context(transport.stream(seat.endpoint, HOP))
                hop = Hop(stream, UPWARD, limits.max_message, Compression(limits.wire.compression))
                watch = Watch(patience(limits.stall, num_stages, seat.stage), lambda: hop.touched)
                below = Below(seat, hop, pace, watch)
                await below.send(opening)
                await _wait_opened(below, opening)
        except TimeoutError:
            raise HopError(f"{seat}: did not open within {wait:.1f} s", seat.peer, "DeadlineError") from None
        except HopError:
            raise
        except DistqatError as error:
            raise HopError(f"{seat}: {error.reason}", seat.peer, type(error).__name__) from None
        yield below


async def _wait_opened(below: Below, opening: Open) -> None:
    received = await below.receive()
    if received is None:
        raise below.blame("UnreachableError", "ended the stream instead of opening the route")
    message = received[0]
    if not isinstance(message, Opened) or message.step not in (opening.step, opening.step + 1):
        raise below.blame(MessageError(f"{message} in answer to a route at step {opening.step}"))
    below.step, below.verdict = message.step, message.verdict
