"""One pipeline, as its trainer drives it: claim samples, submit steps, and replay what a broken route left open."""

from __future__ import annotations

import asyncio
import logging

from distqat.aio import Backoff
from distqat.data import metrics
from distqat.data.claims import Claim
from distqat.data.client import DataClient, UnreadableError
from distqat.data.sampler import progress
from distqat.data.steplog import MOST_STEPS
from distqat.discovery.records import Pace
from distqat.errors import DataError, FencedError, StaleError
from distqat.ids import PipelineId, Seat, short
from distqat.model.rates import warmup_fraction
from distqat.pipeline.link import Link, StepResult, open_route
from distqat.pipeline.route import HopError, Limits, Route, first_error
from distqat.roles.batches import Pacing, microbatches_of
from distqat.roles.checkpoint.words import Begin
from distqat.roles.epochs import epoch_of_hops
from distqat.roles.events.chronicle import Chronicle
from distqat.roles.fuel import Fuel
from distqat.roles.refusals import Failure
from distqat.roles.shown import Shown, tell_if_skipped
from distqat.roles.skips import Skips
from distqat.roles.status import PipelineStatus
from distqat.roles.supply import Portion, Supply
from distqat.roles.trials import Trials, to_tensors
from distqat.telemetry import Reason

log = logging.getLogger(__name__)


class Drive:
    """Keeps one pipeline going, over one route after the other, until the run's budget is committed."""

    def __init__(self, fuel: Fuel, pipeline: PipelineId, data: DataClient, begin: Begin | None = None) -> None:
        self.pipeline = pipeline
        self._fuel = fuel
        self._pacing = Pacing(fuel.config.data, fuel.config.model.stages)
        self._supply = Supply(data, lambda: self._pacing.samples, self._unreadable)
        self._phase = "forming"
        self._reason = Reason(log, "waiting for a route")
        self._epoch = 0  # Of the client's last order.
        self._attempt = 0  # Openings of the route of that order.
        self._seats: tuple[Seat, ...] = ()  # Of the client's last order; empty: stop.
        self._ordered = asyncio.Event()  # Set when there is an order that is not carried out.
        self._draining = asyncio.Event()  # Set when no further step may begin.
        self._progress = Shown(begin.step, begin.verdict) if begin is not None else Shown()
        self._trials = Trials(fuel.reading, fuel.task, fuel.config.data.microbatches)
        self._chronicle = Chronicle(fuel.telemetry.events, pipeline)
        self._skips = Skips(pipeline, fuel.telemetry, self._chronicle)

    def __repr__(self) -> str:
        return f"<Drive {self.pipeline} {self._phase} step {self._progress.step}: {self._reason}>"

    def status(self, now: float) -> PipelineStatus:
        """What the pipeline does."""
        shown = self._progress
        starving = self._supply.waiting if self._phase == "training" else ""
        return PipelineStatus(
            pipeline=self.pipeline,
            epoch=self._epoch,
            route=self._seats,
            step=shown.step,
            loss=shown.loss,
            samples_per_second=shown.rate.value(now),
            phase=self._phase,
            reason=starving or str(self._reason),
            evaluation=shown.evaluation,
            replayed=shown.replayed,
            losses=tuple(shown.losses),
            microbatches=self._pacing.microbatches,
            microbatch_seconds=self._pacing.seconds,
            claims=self._supply.claims(self.pipeline),
            booked=self._supply.booked(self.pipeline),
        )

    def booked(self) -> tuple[Claim, ...]:
        """All that was booked, as far back as books remember."""
        return self._supply.booked(self.pipeline, MOST_STEPS)

    @property
    def pace(self) -> Pace | None:
        """How fast it is; None until it is measured, and when it is over."""
        if not self._pacing.seconds or not self.is_wanted or self._phase == "finished":
            return None
        return Pace(self.pipeline, self._pacing.seconds, self._pacing.microbatches)

    def order(self, epoch: int, seats: tuple[Seat, ...], in_order: bool = False) -> None:
        """The client wants this route from now on, or none: then the steps under way are finished, and it ends.

        In order: the present route is left when its steps under way are committed, so that nothing is replayed.
        Raises StaleError for an order that is not newer than the last.
        """
        if epoch <= self._epoch:
            raise StaleError(f"route epoch {epoch} of pipeline {self.pipeline}, which is at {self._epoch}")
        if seats and seats != self._seats:
            self._pacing.forget()
        self._epoch, self._seats, self._attempt = epoch, seats, 0
        if not seats:
            self._reason.set("stopping: finishing the steps under way")
            self.drain()
        elif in_order and self._phase == "training":
            self._supply.pause()
        else:
            self._ordered.set()

    @property
    def is_wanted(self) -> bool:
        """Whether the client wants it driven."""
        return bool(self._seats)

    def drain(self) -> None:
        """Begin no further step."""
        self._draining.set()
        self._supply.end()

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
                await self._reconsider()
                await self._pause(backoff.next())
            elif self._phase == "finished":
                await _first_set(self._ordered, self._draining)
            else:
                backoff.reset()
        await self._give_back()

    async def _drive_once(self) -> bool:
        """Open the route and train on it. True: it ended in order, or a new one is ordered."""
        self._attempt += 1
        epoch = epoch_of_hops(self._epoch, self._attempt)
        is_in_order = True
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._until_ordered())
                await self._train_on(Route(self.pipeline, epoch, self._seats))
                watch.cancel()
        except* _NewOrder:
            log.info("pipeline %s leaves epoch %d for a newer order", self.pipeline, epoch)
            self._chronicle.left()
            self._trials.left()
        except* HopError as errors:
            is_in_order = False
            error = first_error(errors)
            assert isinstance(error, HopError)
            self._broke(error)
        return is_in_order

    def _broke(self, error: HopError) -> None:
        """What a broken route means for the next."""
        self._phase = "broken"
        self._reason.set(f"{error.kind} at {short(error.peer)}: {error.reason}", logging.WARNING)
        self._chronicle.broke(error, self._progress.step)
        self._fuel.suspect(error.peer, error.reason)
        if error.kind == FencedError.__name__:
            # The client has lost this trainer, and asks the stages what is committed; here nobody knows.
            self._seats = ()
            self.drain()
            return
        places = {seat.peer: f"stage {seat.stage}" for seat in self._seats}
        place = places.get(error.peer, "the trainer")
        if self._trials.broke(error, place):
            self._tell_of_trials()
        elif (batch := self._supply.under_way) is not None:
            failure = Failure(batch.claim, error.kind, place, error.reason)
            self._skips.failed(failure, self._supply)

    async def _reconsider(self) -> None:
        """Give up the batch that fails again and again; and the pipeline, if one batch after the other does."""
        await self._skips.reconsider(self._supply, self._progress.step + 1)
        if self._skips.fault:
            self.drain()

    def _unreadable(self, error: UnreadableError, step: int) -> None:
        """A batch cannot be read, and was refused. If one after the other is, finish the steps under way, and fail."""
        self._skips.unreadable(error, step)
        if self._skips.fault:
            self.drain()

    async def _until_ordered(self) -> None:
        await self._ordered.wait()
        raise _NewOrder

    async def _train_on(self, route: Route) -> None:
        fuel = self._fuel
        limits = Limits.of(fuel.config)
        self._chronicle.opens(route)
        step, verdict, timelines = self._progress.step, self._progress.verdict, fuel.telemetry.timelines
        async with open_route(fuel.transport, fuel.me, fuel.config.id, route, step, limits, verdict, timelines) as link:
            self._progress.verdict = link.verdict
            self._chronicle.opened(link.step)
            await self._take_over(link.step)
            self._phase = "training"
            self._reason.set("training")
            try:
                await self._train(link)
            finally:
                # The ledger may be away and have heard of fewer; the next route opens at what the stages hold.
                self._progress.step, self._progress.verdict = link.step, link.verdict

    async def _train(self, link: Link) -> None:
        async with asyncio.TaskGroup() as group:
            ready: asyncio.Queue[Portion | None] = asyncio.Queue(4)
            claiming = group.create_task(self._supply.keep_claiming())
            collecting = group.create_task(self._collect(link, ready))
            await self._feed(link, ready)
            claiming.cancel()
            await ready.put(None)
            await collecting
        if not self._draining.is_set() and not self._supply.is_paused:
            await self._conclude(link)

    async def _take_over(self, committed: int) -> None:
        """The route is open at this step: what is pending up to it is committed, the rest is replayed."""
        self._progress.step = committed
        if replayed := await self._supply.restart(committed):
            self._progress.replayed += replayed
            log.info("pipeline %s replays from step %d", self.pipeline, committed + 1)
            self._chronicle.replays(committed + 1)

    async def _feed(self, link: Link, ready: asyncio.Queue[Portion | None]) -> None:
        """Submit step after step."""
        config, whole = self._fuel.config, self._fuel.budget
        warmup = warmup_fraction(config.optimizer, config.data.batch, whole)
        while (portion := await self._supply.take()) is not None:
            batch = portion.batch
            tensors, microbatches = to_tensors(batch.tensors), microbatches_of(config.data, batch.samples)
            try:
                at = progress(batch.begin, whole)
                await link.submit(portion.step, tensors, microbatches, at, batch.claim, warmup)
            except DataError as error:  # What the source gave is no batch.
                raise HopError(error.reason, self._fuel.me, DataError.__name__) from None
            await ready.put(portion)
            if config.train.evaluate_every and portion.step % config.train.evaluate_every == 0:
                await self._evaluate(link)
                self._reason.set("training")

    async def _collect(self, link: Link, ready: asyncio.Queue[Portion | None]) -> None:
        """Book the steps as they are committed, in order."""
        while (portion := await ready.get()) is not None:
            result = await link.result(portion.step)
            await self._supply.book(portion.step)
            self._skips.committed(self._supply)
            self._report(result, portion.batch.samples)

    def _report(self, result: StepResult, samples: int) -> None:
        config = self._fuel.config
        self._chronicle.committed(result.step)
        values = self._progress.committed(result, samples, asyncio.get_running_loop().time())
        self._adapt(samples, result.worked)
        values["microbatches"] = microbatches_of(config.data, samples)
        values["microbatch_seconds"] = self._pacing.seconds
        tell_if_skipped(self.pipeline, result, config.train.precision)
        self._fuel.telemetry.record("step", {"pipeline": self.pipeline}, values)

    def _adapt(self, samples: int, seconds: float) -> None:
        """Choose how large the steps to come are, so that all pipelines come to their rounds together."""
        pacing = self._pacing
        pacing.measured(samples, seconds)
        others = [pace for pace in self._fuel.paces() if pace.pipeline != self.pipeline]
        before = pacing.microbatches
        if pacing.adapt(others):
            log.info("pipeline %s: %d microbatches a step, %d before", self.pipeline, pacing.microbatches, before)

    async def _conclude(self, link: Link) -> None:
        """The budget is committed: agree with the siblings a last time, and see what was learned."""
        self._reason.set("settling: a last round with the siblings")
        await link.settle()
        await self._evaluate(link)
        self._phase = "finished"
        without = f", and not evaluated: {self._trials.fault}" if self._trials.fault else ""
        self._reason.set(f"the run's budget is committed{without}")
        self._chronicle.over(link.step, is_finished=True)

    async def _evaluate(self, link: Link) -> None:
        if self._trials.fault:
            return
        self._reason.set(f"evaluating after step {link.step}")
        if not (values := await self._trials.evaluate(link)):
            self._tell_of_trials()
            return
        self._progress.evaluation = values[metrics.METRICS[self._fuel.task]]
        self._fuel.telemetry.record("evaluation", {"pipeline": self.pipeline}, {"step": link.step, **values})

    def _tell_of_trials(self) -> None:
        """Once, when evaluations are given up."""
        if fault := self._trials.fault:
            log.warning("pipeline %s goes on without evaluations: %s", self.pipeline, fault)
            self._chronicle.without_evaluations(fault, self._progress.step)

    async def _give_back(self) -> None:
        """Somebody else trains on what was surely not committed here."""
        await self._supply.book(self._progress.step)
        await self._supply.give_back()
        if self._skips.fault:
            self._phase = "failed"
            self._reason.set(self._skips.fault, logging.WARNING)
        elif self._phase != "finished":
            self._phase = "waiting"
            self._reason.set("stopped")
            self._chronicle.over(self._progress.step, is_finished=False)

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
