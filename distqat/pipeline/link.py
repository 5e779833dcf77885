"""The trainer's end of a route: batches go in, sums come out.

The next step may be submitted while the present one is under way, so that stage 0 never waits for the trainer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import torch

from distqat.aio import Mailbox
from distqat.errors import DistqatError, MessageError, StaleError
from distqat.ids import PeerId, RunId
from distqat.model.agreement import Verdict, first_scale
from distqat.pipeline.below import Below, open_below
from distqat.pipeline.freight import Freight
from distqat.pipeline.hop_codecs import codecs_of
from distqat.pipeline.host import unwatched
from distqat.pipeline.pace import TRAINER, Pace, PaceState
from distqat.pipeline.route import HopError, Limits, Route, first_error
from distqat.pipeline.tally import Piece, Results, StepResult, Tally, pieces_of
from distqat.pipeline.words import (
    Busy,
    Committed,
    Gradient,
    Message,
    Open,
    Outcome,
    Pong,
    Settle,
    Settled,
)
from distqat.rpc.handlers import task_group
from distqat.rpc.transport import Transport
from distqat.timeline import Timeline, Timelines

__all__ = ["MAX_STEPS_AHEAD", "Link", "StepResult", "open_route"]

log = logging.getLogger(__name__)

MAX_STEPS_AHEAD = 2
"""Steps that may be submitted and not committed: the present one and the next."""

MAX_FED = 2
"""Microbatches that wait to be encoded."""


class Link:
    """An open route, as its trainer holds it. Everything that waits raises HopError once the route is broken."""

    def __init__(self, me: PeerId, route: Route, below: Below, limits: Limits, pace: Pace, timeline: Timeline) -> None:
        self.route = route
        self.step = below.step  # Committed.
        self.verdict = below.verdict  # On that step; the next route is opened with both.
        self._me = me
        self._below = below
        self._limits = limits
        self._pace = pace
        self._timeline = timeline
        self._freight = Freight("below", below, codecs_of(limits.wire, (), 0), timeline, pace)
        self._under_way = 0  # Microbatches sent and not answered.
        self._feed: Mailbox[Piece] = Mailbox("microbatches of a route", MAX_FED)
        self._submitted = below.step  # The last step that was submitted.
        self._results = Results()
        self._evaluation: Tally | None = None  # None while none is under way.
        self._serial = 0  # Of the last request to settle.
        self._settled = 0  # Of the last one that was answered.
        self._exclusive = False  # An evaluation or a request to settle has the route for itself.
        self._broken: HopError | None = None  # Why the route is no more; None while it holds.
        self._changed = asyncio.Event()  # Set, and replaced, whenever anything above changes.

    def __repr__(self) -> str:
        state = f"broken: {self._broken}" if self._broken else f"step {self.step}, {self._steps} under way"
        return f"<Link {self.route.pipeline} epoch {self.route.epoch} {state}>"

    def pace(self) -> PaceState:
        """What is known of the route's speed; its bound is how many microbatches may be under way."""
        return self._pace.statistics()

    async def train(
        self, step: int, tensors: Mapping[str, torch.Tensor], microbatches: int, progress: float = 0.0, claim: int = 0
    ) -> StepResult:
        """One step: `tensors` holds "inputs" and the targets, the first dimension counts samples."""
        await self.submit(step, tensors, microbatches, progress, claim)
        return await self.result(step)

    async def submit(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        microbatches: int,
        progress: float = 0.0,
        claim: int = 0,
        warmup: float = 0.0,
    ) -> None:
        """Give a step to the route; waits while two are under way. Raises StaleError unless it is the next one.

        `progress` is the part of the run's budget, 0 to 1, that lay before the batch: the clock of the learning rate;
        `warmup` is the part that warms it up. `claim` names the batch in the run's books, and is what the stages
        remember of it.
        """
        await self._until(lambda: not self._exclusive and self._steps < MAX_STEPS_AHEAD)
        if step != self._submitted + 1:
            raise StaleError(f"step {step} was submitted where step {self._submitted + 1} comes next")
        pieces = pieces_of(step, tensors, microbatches, train=True, progress=progress, claim=claim, warmup=warmup)
        self._submitted = step
        self._results.begin(step, len(pieces))
        await self._give(pieces)

    async def result(self, step: int) -> StepResult:
        """Wait until the step is committed. Raises StaleError for one that was not submitted or is forgotten."""
        await self._until(lambda: step not in self._results.under_way)
        result = self._results.take(step)
        if result is None:
            raise StaleError(f"nothing is known of step {step}; the route is at step {self.step}")
        return result

    async def evaluate(self, tensors: Mapping[str, torch.Tensor], microbatches: int) -> dict[str, float]:
        """Sums over the samples, forward only; waits until no step is under way, and changes nothing."""
        async with self._alone():
            pieces = pieces_of(self.step + 1, tensors, microbatches, train=False)
            tally = self._evaluation = Tally(len(pieces))
            await self._give(pieces)
            await self._until(lambda: tally.is_complete)
            return tally.sums

    async def settle(self) -> None:
        """Have every stage run an outer round; waits until no step is under way, and until all are done."""
        async with self._alone():
            self._serial += 1
            self._below.watch.owe()
            await self._below.send(Settle(self._serial))
            await self._until(lambda: self._settled == self._serial)

    async def run(self) -> None:
        """Feed the route and listen to it until it ends or breaks. Whoever waits is told why; this never fails."""
        broken = self._below.blame("UnreachableError", "ended the stream")
        try:
            async with asyncio.TaskGroup() as group:
                others = (
                    group.create_task(self._send_fed()),
                    group.create_task(self._below.wait_dead()),
                    group.create_task(self._below.keep_measuring(self._limits.ping)),
                )
                await self._listen()
                for other in others:
                    other.cancel()
        except* DistqatError as errors:
            error = first_error(errors)
            # What came from below names its peer; the rest went wrong here.
            if isinstance(error, HopError):
                broken = error
            elif error is not None:
                broken = HopError(error.reason, self._me, type(error).__name__)
        finally:
            self._broken = broken
            self._notify()

    async def close(self) -> None:
        """End in order, so that all that was committed is known to every stage. A break on the way is only logged: the
        next route makes up for it."""
        try:
            async with asyncio.timeout(self._limits.open):
                await self._until(lambda: not self._exclusive and not self._steps)
                await self._below.finish()
                while self._broken is None:
                    await self._changed.wait()
        except (HopError, TimeoutError) as error:
            log.info("%s did not close in order: %s", self.route, error or "it took too long")

    async def _listen(self) -> None:
        while (received := await self._below.receive()) is not None:
            try:
                self._hear(received[0])
            except MessageError as error:
                raise self._below.blame(error) from None
            self._notify()

    def _hear(self, message: Message) -> None:
        steps = self._results.under_way
        match message:
            case Outcome() if self._evaluation is not None:
                self._evaluation.add(message)
                self._answered()
            case Gradient(step) if step in steps:
                steps[step].add(message)
                self._answered()
            case Committed(step) if step == self.step + 1 and step in steps:
                self._results.commit(message, asyncio.get_running_loop().time())
                self._below.watch.paid()
                self.step, self.verdict = step, message.verdict
                self._timeline.committed(step, self._freight.link)
            case Settled(serial) if serial == self._serial != self._settled:
                self._settled = serial
                self._below.watch.paid()
            case Busy() | Pong():
                pass
            case _:
                raise MessageError(f"{message} at step {self.step}, where it has no place")

    def _answered(self) -> None:
        if not self._under_way:
            raise MessageError("an answer where none was owed")
        self._under_way -= 1
        self._below.watch.paid()

    async def _send_fed(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message, named = await self._feed.get()
            self._notify()
            # Encoded before there is room for it: so it is on its way the moment there is.
            loaded, payload = await self._freight.load(message, named)
            while self._under_way >= self._pace.bound:
                await self._changed.wait()
            if message.train and message.index == 0:
                self._results.under_way[message.step].began = loop.time()
                self._below.watch.owe()  # The commit.
            self._under_way += 1
            self._below.watch.owe()
            await self._freight.send(loaded, payload)

    @property
    def _steps(self) -> int:
        """How many are under way."""
        return len(self._results.under_way)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        await self._until(lambda: not self._exclusive and not self._steps)
        self._exclusive = True
        try:
            yield
        finally:
            self._exclusive = False
            self._evaluation = None
            self._notify()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._broken is not None:
                raise self._broken.again()
            await self._changed.wait()

    async def _give(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            await self._until(lambda: len(self._feed) < MAX_FED)
            self._feed.put_nowait(piece)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@asynccontextmanager
async def open_route(
    transport: Transport,
    me: PeerId,
    run: RunId,
    route: Route,
    step: int,
    limits: Limits,
    verdict: Verdict | None = None,
    timelines: Timelines | None = None,
) -> AsyncIterator[Link]:
    """Open a route whose trainer knows of `step` committed steps, the last with that `verdict`; `Link.step` and
    `Link.verdict` say how far it is. Without a verdict: that of a pipeline which begins, or forgot it.

    Raises HopError. At the end the route is closed in order, or at once if the block fails.
    """
    if verdict is None:
        verdict = Verdict(1.0, first_scale(limits.precision))
    pace = Pace(len(route.seats), TRAINER, limits.max_in_flight)
    timeline = (timelines or unwatched()).of(route.pipeline, "trainer", TRAINER)
    codecs = codecs_of(limits.wire, (), 0)
    opening = Open(run, route.pipeline, route.epoch, step, route.seats, me, codecs, verdict)
    async with open_below(transport, opening, limits, pace) as below:
        timeline.restart()
        link = Link(me, route, below, limits, pace, timeline)
        async with task_group() as group:
            listening = group.create_task(link.run())
            try:
                yield link
                await link.close()
            finally:
                listening.cancel()
