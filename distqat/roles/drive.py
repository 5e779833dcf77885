"""One pipeline, as its trainer drives it: claim samples, submit steps, and replay what a broken route left open."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from distqat.aio import Backoff
from distqat.config import RunConfig
from distqat.data import metrics
from distqat.data.client import Batch, LedgerClient
from distqat.data.sources import Arrays, Source, evaluation_batches
from distqat.errors import StaleError
from distqat.ids import PeerId, PipelineId, Seat, short
from distqat.pipeline.link import Link, StepResult, open_route
from distqat.pipeline.route import HopError, Limits, Route, first_error
from distqat.roles.status import PipelineStatus
from distqat.rpc.transport import Transport
from distqat.telemetry import Rate, Reason, Telemetry

log = logging.getLogger(__name__)

ATTEMPTS_OF_AN_EPOCH = 1 << 16
"""A trainer that opens its route again makes a new epoch of the hops, without one of the client's."""

SHOWN_LOSSES = 32


@dataclass(frozen=True)
class Fuel:
    """What a drive runs on."""

    me: PeerId
    transport: Transport
    config: RunConfig
    source: Source
    telemetry: Telemetry


@dataclass
class _Progress:
    """What is shown of a pipeline."""

    step: int = 0
    loss: float = math.nan
    evaluation: float = math.nan
    replayed: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN_LOSSES))
    rate: Rate = field(default_factory=Rate)


class Drive:
    """Keeps one pipeline going, over one route after the other, until the run's budget is committed."""

    def __init__(self, fuel: Fuel, pipeline: PipelineId, data: LedgerClient) -> None:
        self.pipeline = pipeline
        self._fuel = fuel
        self._data = data
        self._phase = "forming"
        self._reason = Reason(log, "waiting for a route")
        self._epoch = 0  # Of the client's last order.
        self._attempt = 0  # Openings of the route of that order.
        self._seats: tuple[Seat, ...] = ()  # Of the client's last order; empty: stop.
        self._ordered = asyncio.Event()  # Set when there is an order that is not carried out.
        self._draining = asyncio.Event()  # Set when no further step may begin.
        self._pending: deque[tuple[int, Batch]] = deque()  # Submitted, or about to be, and not known to be committed.
        self._progress = _Progress()

    def __repr__(self) -> str:
        return f"<Drive {self.pipeline} {self._phase} step {self._progress.step}: {self._reason}>"

    def status(self, now: float) -> PipelineStatus:
        """What the pipeline does."""
        progress = self._progress
        is_starving = self._phase == "training" and not self._pending
        return PipelineStatus(
            pipeline=self.pipeline,
            epoch=self._epoch,
            route=self._seats,
            step=progress.step,
            loss=progress.loss,
            samples_per_second=progress.rate.value(now),
            phase=self._phase,
            reason=(self._data.waiting if is_starving else "") or str(self._reason),
            evaluation=progress.evaluation,
            replayed=progress.replayed,
            losses=tuple(progress.losses),
        )

    def order(self, epoch: int, seats: tuple[Seat, ...]) -> None:
        """The client wants this route from now on, or none: then the steps under way are finished, and it ends.

        Raises StaleError for an order that is not newer than the last.
        """
        if epoch <= self._epoch:
            raise StaleError(f"route epoch {epoch} of pipeline {self.pipeline}, which is at {self._epoch}")
        self._epoch, self._seats, self._attempt = epoch, seats, 0
        (self._ordered if seats else self._draining).set()

    @property
    def is_wanted(self) -> bool:
        """Whether the client wants it driven."""
        return bool(self._seats)

    def drain(self) -> None:
        """Begin no further step."""
        self._draining.set()

    async def work(self) -> None:
        """Drive until the budget is committed, or the pipeline is stopped or drained."""
        backoff = Backoff(0.1, 2.0)
        while not self._draining.is_set():
            self._ordered.clear()
            if not self._seats:
                break
            if self._phase != "broken":
                self._phase = "forming"
                self._reason.set(f"opening the route over {' > '.join(short(seat.peer) for seat in self._seats)}")
            if not await self._drive_once():
                await self._pause(backoff.next())
            elif self._phase == "finished":
                await _first_set(self._ordered, self._draining)
            else:
                backoff.reset()
        await self._give_back()

    async def _drive_once(self) -> bool:
        """Open the route and train on it. True: it ended in order, or a new one is ordered."""
        self._attempt += 1
        epoch = self._epoch * ATTEMPTS_OF_AN_EPOCH + self._attempt
        is_in_order = True
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._until_ordered())
                await self._train_on(Route(self.pipeline, epoch, self._seats))
                watch.cancel()
        except* _NewOrder:
            log.info("pipeline %s leaves epoch %d for a newer order", self.pipeline, epoch)
        except* HopError as errors:
            is_in_order = False
            error = first_error(errors)
            assert isinstance(error, HopError)
            self._phase = "broken"
            self._reason.set(f"{error.kind} at {short(error.peer)}: {error.reason}", logging.WARNING)
        return is_in_order

    async def _until_ordered(self) -> None:
        await self._ordered.wait()
        raise _NewOrder

    async def _train_on(self, route: Route) -> None:
        fuel = self._fuel
        limits = Limits.of(fuel.config)
        async with open_route(fuel.transport, fuel.me, fuel.config.id, route, self._progress.step, limits) as link:
            await self._take_over(link.step)
            self._phase = "training"
            self._reason.set("training")
            try:
                await self._train(link)
            finally:
                # The ledger may be away and have heard of fewer; the next route opens at what the stages hold.
                self._progress.step = link.step

    async def _train(self, link: Link) -> None:
        async with asyncio.TaskGroup() as group:
            ready: asyncio.Queue[tuple[int, Batch] | None] = asyncio.Queue(4)
            collect = group.create_task(self._collect(link, ready))
            await self._feed(link, ready)
            await ready.put(None)
            await collect
        if not self._draining.is_set():
            await self._conclude(link)

    async def _take_over(self, committed: int) -> None:
        """The route is open at this step: what is pending up to it is committed, the rest is replayed."""
        self._progress.step = committed
        await self._book_committed()
        if self._pending:
            self._progress.replayed += 1
            log.info("pipeline %s replays from step %d", self.pipeline, committed + 1)

    async def _book_committed(self) -> None:
        while self._pending and self._pending[0][0] <= self._progress.step:
            await self._data.committed(self._pending[0][1])
            self._pending.popleft()

    async def _feed(self, link: Link, ready: asyncio.Queue[tuple[int, Batch] | None]) -> None:
        """Submit step after step; the next batch is claimed while the present one is under way."""
        for step, pending in list(self._pending):
            await self._submit(link, step, pending, ready)
        # Not counted from the link's step: that may be ahead of what has left the pending ones.
        step, every = (self._pending[-1][0] if self._pending else link.step), self._fuel.config.train.evaluate_every
        while not self._draining.is_set():
            batch = await self._next_batch()
            if batch is None:
                return
            step += 1
            self._pending.append((step, batch))
            await self._submit(link, step, batch, ready)
            if every and step % every == 0:
                await self._evaluate(link)

    async def _next_batch(self) -> Batch | None:
        """The next batch; None when the budget is committed, or when no further step may begin."""
        async with asyncio.TaskGroup() as group:
            claim = group.create_task(self._data.next(self._fuel.config.data.batch))
            drained = group.create_task(self._draining.wait())
            await asyncio.wait({claim, drained}, return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()
            if not claim.done():
                # A cancelled claim loses nothing: it is released with the pipeline.
                claim.cancel()
        return None if claim.cancelled() else claim.result()

    async def _submit(
        self, link: Link, step: int, batch: Batch, ready: asyncio.Queue[tuple[int, Batch] | None]
    ) -> None:
        await link.submit(step, to_tensors(batch.tensors), self._fuel.config.data.microbatches)
        await ready.put((step, batch))

    async def _collect(self, link: Link, ready: asyncio.Queue[tuple[int, Batch] | None]) -> None:
        """Book the steps as they are committed, in order."""
        while (item := await ready.get()) is not None:
            step, batch = item
            result = await link.result(step)
            await self._data.committed(batch)
            self._pending.popleft()
            self._report(result, batch.samples)

    def _report(self, result: StepResult, samples: int) -> None:
        now = asyncio.get_running_loop().time()
        progress = self._progress
        progress.step = result.step
        progress.loss = result.sums["loss"] / samples
        progress.losses.append(progress.loss)
        progress.rate.add(samples, now)
        values = {"step": result.step, "loss": progress.loss, "seconds": result.seconds, "samples": samples}
        values["samples_per_second"] = progress.rate.value(now)
        self._fuel.telemetry.record("step", {"pipeline": self.pipeline}, values)

    async def _conclude(self, link: Link) -> None:
        """The budget is committed: agree with the siblings a last time, and see what was learned."""
        self._reason.set("settling: a last round with the siblings")
        await link.settle()
        await self._evaluate(link)
        self._phase = "finished"
        self._reason.set("the run's budget is committed")

    async def _evaluate(self, link: Link) -> None:
        source, data = self._fuel.source, self._fuel.config.data
        sums: dict[str, float] = {}
        for arrays in evaluation_batches(source.held_out, EVALUATION_BATCH):
            add_sums(sums, await link.evaluate(to_tensors(arrays), data.microbatches))
        values = metrics.evaluation(source.task, sums)
        self._progress.evaluation = values[metrics.METRICS[source.task]]
        self._fuel.telemetry.record("evaluation", {"pipeline": self.pipeline}, {"step": link.step, **values})

    async def _give_back(self) -> None:
        """Somebody else trains on what was not committed here."""
        await self._book_committed()
        while self._pending:
            await self._data.give_back(self._pending[0][1])
            self._pending.popleft()
        if self._phase != "finished":
            self._phase = "waiting"
            self._reason.set("stopped")

    async def _pause(self, seconds: float) -> None:
        """Wait before the route is opened again, but not for longer than until a new one is ordered."""
        try:
            async with asyncio.timeout(seconds):
                await _first_set(self._ordered, self._draining)
        except TimeoutError:
            return


async def _first_set(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


class _NewOrder(Exception):
    """Leaves the present route for the one that was just ordered."""


EVALUATION_BATCH = 256
"""Samples of one forward-only batch."""


def to_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """The arrays of a batch as tensors that share their memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def add_sums(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add up what a task reports."""
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value
