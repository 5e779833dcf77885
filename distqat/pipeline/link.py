"""The trainer's end of a route: batches go in, sums come out.

The next step may be submitted while the present one is under way, so that stage 0 never waits for the trainer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import torch

from distqat.aio import Mailbox
from distqat.errors import DataError, DistqatError, MessageError, StaleError
from distqat.ids import PeerId, RunId
from distqat.pipeline.below import Below, open_below
from distqat.pipeline.hop import pack
from distqat.pipeline.messages import Busy, Committed, Gradient, Message, Microbatch, Open, Outcome, Settle, Settled
from distqat.pipeline.route import HopError, Limits, Route, first_error
from distqat.pipeline.schedule import credits
from distqat.pipeline.split import split
from distqat.rpc.handlers import task_group
from distqat.rpc.transport import Transport

log = logging.getLogger(__name__)

MAX_STEPS_AHEAD = 2
"""Steps that may be submitted and not committed: the present one and the next."""

MAX_RESULTS = 16
"""Results that are kept for someone to ask; older ones are forgotten."""


MAX_FED = 2
"""Microbatches that wait to be encoded."""

_Piece = tuple[Microbatch, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class StepResult:
    """A committed step: sums over its samples ("loss", ...), and seconds since its first microbatch was sent."""

    step: int
    sums: Mapping[str, float]
    seconds: float


@dataclass
class _Tally:
    """Sums so far of a step or an evaluation."""

    count: int
    began: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    outcomes: int = 0

    def add(self, sums: Mapping[str, float]) -> None:
        self.outcomes += 1
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class Link:
    """An open route, as its trainer holds it. Everything that waits raises HopError once the route is broken."""

    def __init__(self, me: PeerId, route: Route, below: Below, limits: Limits) -> None:
        self.route = route
        self.step = below.step  # Committed.
        self._me = me
        self._below = below
        self._limits = limits
        self._credits = credits(len(route.seats), 0)
        self._under_way = 0  # Microbatches sent and not answered.
        self._feed: Mailbox[_Piece] = Mailbox("microbatches of a route", MAX_FED)
        self._submitted = below.step  # The last step that was submitted.
        self._steps: dict[int, _Tally] = {}  # Submitted and not committed.
        self._results: dict[int, StepResult] = {}  # Committed and not asked for.
        self._evaluation: _Tally | None = None  # None while none is under way.
        self._serial = 0  # Of the last request to settle.
        self._settled = 0  # Of the last one that was answered.
        self._exclusive = False  # An evaluation or a request to settle has the route for itself.
        self._broken: HopError | None = None  # Why the route is no more; None while it holds.
        self._changed = asyncio.Event()  # Set, and replaced, whenever anything above changes.

    def __repr__(self) -> str:
        state = f"broken: {self._broken}" if self._broken else f"step {self.step}, {len(self._steps)} under way"
        return f"<Link {self.route.pipeline} epoch {self.route.epoch} {state}>"

    async def train(self, step: int, tensors: Mapping[str, torch.Tensor], microbatches: int) -> StepResult:
        """One step: `tensors` holds "inputs" and the targets, the first dimension counts samples."""
        await self.submit(step, tensors, microbatches)
        return await self.result(step)

    async def submit(self, step: int, tensors: Mapping[str, torch.Tensor], microbatches: int) -> None:
        """Give a step to the route; waits while two are under way. Raises StaleError unless it is the next one."""
        await self._until(lambda: not self._exclusive and len(self._steps) < MAX_STEPS_AHEAD)
        if step != self._submitted + 1:
            raise StaleError(f"step {step} was submitted where step {self._submitted + 1} comes next")
        pieces = _pieces(step, tensors, microbatches, train=True)
        self._submitted = step
        self._steps[step] = _Tally(len(pieces))
        await self._give(pieces)

    async def result(self, step: int) -> StepResult:
        """Wait until the step is committed. Raises StaleError for one that was not submitted or is forgotten."""
        await self._until(lambda: step not in self._steps)
        try:
            return self._results.pop(step)
        except KeyError:
            raise StaleError(f"nothing is known of step {step}; the route is at step {self.step}") from None

    async def evaluate(self, tensors: Mapping[str, torch.Tensor], microbatches: int) -> dict[str, float]:
        """Sums over the samples, forward only; waits until no step is under way, and changes nothing."""
        async with self._alone():
            pieces = _pieces(self.step + 1, tensors, microbatches, train=False)
            tally = self._evaluation = _Tally(len(pieces))
            await self._give(pieces)
            await self._until(lambda: tally.outcomes == tally.count)
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
                feed = group.create_task(self._send_fed())
                watch = group.create_task(self._below.wait_dead())
                await self._listen()
                feed.cancel()
                watch.cancel()
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
        match message:
            case Outcome(step, _, train, sums):
                tally = self._steps.get(step) if train else self._evaluation
                if tally is None or tally.outcomes == tally.count:
                    raise MessageError(f"an outcome of {message.id}, which does not wait for one")
                tally.add(sums)
                if not train:
                    self._answered()
            case Gradient(step) if step in self._steps:
                self._answered()
            case Committed(step) if step == self.step + 1 and step in self._steps:
                self._commit(step)
            case Settled(serial) if serial == self._serial != self._settled:
                self._settled = serial
                self._below.watch.paid()
            case Busy():
                pass
            case _:
                raise MessageError(f"{message} at step {self.step}, where it has no place")

    def _answered(self) -> None:
        if not self._under_way:
            raise MessageError("an answer where none was owed")
        self._under_way -= 1
        self._below.watch.paid()

    def _commit(self, step: int) -> None:
        tally = self._steps[step]
        if tally.outcomes != tally.count:
            raise MessageError(f"step {step} is committed after {tally.outcomes} of {tally.count} outcomes")
        del self._steps[step]
        self._below.watch.paid()
        self.step = step
        self._results[step] = StepResult(step, tally.sums, asyncio.get_running_loop().time() - tally.began)
        if len(self._results) > MAX_RESULTS:
            del self._results[next(iter(self._results))]

    async def _send_fed(self) -> None:
        while True:
            message, named = await self._feed.get()
            self._notify()
            while self._under_way >= self._credits:
                await self._changed.wait()
            if message.train and message.index == 0:
                self._steps[message.step].began = asyncio.get_running_loop().time()
                self._below.watch.owe()  # The commit.
            headers, payload = await pack(named, self._limits.activations)
            self._under_way += 1
            self._below.watch.owe()
            await self._below.send(replace(message, tensors=headers), payload)

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

    async def _give(self, pieces: Sequence[_Piece]) -> None:
        for piece in pieces:
            await self._until(lambda: len(self._feed) < MAX_FED)
            self._feed.put_nowait(piece)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _pieces(step: int, tensors: Mapping[str, torch.Tensor], microbatches: int, train: bool) -> list[_Piece]:
    """The microbatches of a batch, with their part of each tensor."""
    sizes = {len(tensor) for tensor in tensors.values()}
    if len(sizes) != 1 or "inputs" not in tensors:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise DataError(f"a batch needs 'inputs' and targets of as many samples, got {shapes}")
    samples = sizes.pop()
    ranges = split(samples, microbatches)
    return [
        (
            Microbatch(step, index, len(ranges), samples, train, len(part)),
            {name: tensor[part.start : part.stop] for name, tensor in tensors.items()},
        )
        for index, part in enumerate(ranges)
    ]


@asynccontextmanager
async def open_route(
    transport: Transport, me: PeerId, run: RunId, route: Route, step: int, limits: Limits
) -> AsyncIterator[Link]:
    """Open a route whose trainer knows of `step` committed steps; `Link.step` says how many there are.

    Raises HopError. At the end the route is closed in order, or at once if the block fails.
    """
    opening = Open(run, route.pipeline, route.epoch, step, route.seats)
    async with open_below(transport, opening, limits) as below:
        link = Link(me, route, below, limits)
        async with task_group() as group:
            listening = group.create_task(link.run())
            try:
                yield link
                await link.close()
            finally:
                listening.cancel()
