"""The expert: hosts one stage, or is a spare until it is given one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from distqat.aio import Backoff, supervise
from distqat.averaging.averager import Averager
from distqat.averaging.context import Context, Sibling
from distqat.averaging.service import services as averaging_services
from distqat.averaging.spans import Shape
from distqat.config import RunConfig
from distqat.data.sampler import budget
from distqat.data.sources import Source, open_source
from distqat.data.tasks import find_task
from distqat.discovery.records import ExpertRecord
from distqat.errors import ConfigError, DistqatError, RefusedError
from distqat.ids import PeerId, StageIndex
from distqat.model.build import build_stage
from distqat.model.device import Device
from distqat.pipeline.route import Limits
from distqat.pipeline.service import PipelineService
from distqat.roles.context import RoleContext, RoleOptions
from distqat.roles.journal import Journal
from distqat.roles.newcomer import Newcomer
from distqat.roles.seat import Seat
from distqat.roles.status import ExpertStatus, RoleStatus
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 0.25

FIRST_SECONDS = 30.0
"""The first unit of work may take so long: kernels are loaded, and nothing is known of its length yet."""

STUCK_FACTOR = 4.0
"""A device is stuck when one unit of work takes so many times the longest one before (and longer than a lease)."""


@asynccontextmanager
async def open_role(context: RoleContext, options: RoleOptions) -> AsyncIterator[Expert]:
    """Serve as an expert while the role is held."""
    expert = Expert(context, options)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(supervise("expert", expert.work, Backoff(0.5, 10.0), expert.failed))
        try:
            yield expert
        finally:
            task.cancel()
            expert.withdraw()


class Expert:
    """Holds at most one seat, the one that it was given last."""

    def __init__(self, context: RoleContext, options: RoleOptions) -> None:
        self._context = context
        self._reason = Reason(log, "waiting: no run is known yet")
        self._phase = "waiting"
        self._pinned = StageIndex(options.stage) if options.stage is not None else None
        self._wanted: StageIndex | None = self._pinned  # None: be a spare.
        self._changed = asyncio.Event()  # Set when `_wanted` has changed.
        self._config: RunConfig | None = None  # None until the run is known.
        self._seat: Seat | None = None  # None while a spare, and while the stage is being built.

    def __repr__(self) -> str:
        return f"<Expert {self._seat or 'spare'} {self._phase}: {self._reason}>"

    def status(self) -> RoleStatus:
        """Phase, reason, and the stage."""
        phase = self._seat.phase if self._seat is not None and self._phase == "seated" else self._phase
        return RoleStatus("expert", phase, str(self._reason), expert=self._facts())

    def failed(self, error: BaseException) -> None:
        """The work failed and will be tried again."""
        self._phase = "failed"
        self._reason.set(f"failed: {_why(error)}; trying again", logging.WARNING)

    async def assign(self, stage: StageIndex | None) -> ExpertStatus:
        """Take this stage, or none. Raises RefusedError when it is pinned elsewhere or leaving, ConfigError."""
        if self._phase == "draining":
            raise RefusedError("this expert is leaving")
        if self._config is not None and stage is not None:
            _check_stage(self._config, stage)
        if self._pinned is not None and stage != self._pinned:
            raise RefusedError(f"this expert was started for stage {self._pinned} and takes no other")
        if stage != self._wanted:
            self._wanted = stage
            self._changed.set()
        return self._facts()

    async def drain(self) -> None:
        """Finish the step under way, share it with the siblings, and give the seat back."""
        self._phase = "draining"
        self._reason.set("draining: finishing the step under way")
        seat = self._seat
        if seat is None:
            return
        seat.is_closing = True
        # The client sees this phase and gives the route to others; a trainer that leaves closes it.
        await seat.unrouted.wait()
        await self._share_progress(seat)

    async def _share_progress(self, seat: Seat) -> None:
        """Last rounds before the seat is given back, so that the siblings keep what was learned here."""
        seat.is_closing = True
        await seat.rounds.landed()
        if seat.has_progress and seat.is_between_steps and self._siblings(seat.stage.index):
            self._reason.set(f"a last round of {seat.stage.name}, so that the siblings keep what was learned")
            await seat.rounds.settle()

    def withdraw(self) -> None:
        """Nobody is told of this expert any more."""
        if self._context.directory.run is not None:
            self._context.directory.withdraw(ExpertRecord)

    async def work(self) -> None:
        """Learn the run, then hold the wanted seat, one after the other."""
        context = self._context
        self._config = config = await context.run.wait()
        if self._wanted is not None:
            _check_stage(config, self._wanted)
        self._reason.set(f"opening data source {config.data.source}")
        source = await asyncio.to_thread(open_source, config.data)
        daemon = context.settings.daemon
        async with (
            Device.open(daemon.device, daemon.threads) as device,
            # Whole vectors of rounds, which lie in the memory of the CPU: beside them the device goes on.
            Device.open("cpu", daemon.threads) as side,
            asyncio.TaskGroup() as group,
        ):
            with context.heartbeat.asking(partial(_stuck_seconds, device, config.lease.min)):
                group.create_task(self._keep_announcing())
                while True:
                    await self._hold(partial(self._serve, config, source, device, side))

    async def _hold(self, serve: Callable[[StageIndex], Coroutine[Any, Any, None]]) -> None:
        """Hold the seat that is wanted now, until another one is."""
        self._changed.clear()
        wanted = self._wanted
        if wanted is None:
            self._phase = "waiting"
            self._reason.set("waiting: a spare, for a stage that needs one")
            await self._changed.wait()
            return
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(serve(wanted))
            await self._changed.wait()
            if self._seat is not None:
                await self._share_progress(self._seat)
            serving.cancel()

    async def _serve(self, config: RunConfig, source: Source, device: Device, side: Device, index: StageIndex) -> None:
        context = self._context
        self._phase = "joining"
        self._reason.set(f"building stage {index} of {config.model.stages}")
        task = find_task(source.task)
        # Not on the device: nothing else uses it yet, and reading torch for the first time takes seconds.
        positions = budget(config.train.epochs, len(source.train))
        build = partial(build_stage, config, source.shape, index, task, device.torch_device, positions)
        stage = await asyncio.to_thread(build)
        journal = Journal(context.telemetry, stage.name)
        circle = Context(
            me=context.me,
            endpoint=context.endpoint,
            run=config.id,
            stage=index,
            shapes=tuple(Shape(held.num_parameters, held.num_elements) for held in stage.fragments),
            transport=context.transport,
            device=side,
            sync=config.sync,
            siblings=partial(self._siblings, index),
            on_lost=context.directory.mark_lost,
            on_refused=journal.refused,
        )
        async with Averager.open(circle) as averager:
            seat = Seat(context, config, stage, device, averager, journal, self._reason)
            # To settle is a round of each fragment.
            limits = replace(Limits.of(config), settle=len(stage.fragments) * circle.waits.total)
            timelines = context.telemetry.timelines
            routes = PipelineService(seat, context.transport, context.me, config.id, limits, timelines)
            services = [*averaging_services(averager), routes.service()]
            for service in services:
                context.server.add(service)
            self._seat = seat
            try:
                newcomer = Newcomer(context, stage, device, averager, circle.siblings, self._reason)
                await newcomer.get_state()
                self._phase, seat.phase = "seated", "waiting"
                self._reason.set(f"waiting: no route through {stage.name} yet")
                self._announce()
                await seat.keep()
            finally:
                self._seat = None
                for service in services:
                    await context.server.remove(service.name)

    def _siblings(self, stage: StageIndex) -> list[Sibling]:
        """The live experts of the same stage, without this one."""
        experts: dict[PeerId, ExpertRecord] = {
            peer: entry.record for peer, entry in self._context.directory.snapshot().experts.items()
        }
        return [
            Sibling(peer, record.endpoint, record.round, record.digest, record.ready)
            for peer, record in sorted(experts.items())
            if peer != self._context.me and record.seated and record.stage == stage
        ]

    async def _keep_announcing(self) -> None:
        while True:
            self._announce()
            await asyncio.sleep(ANNOUNCE_SECONDS)

    def _facts(self) -> ExpertStatus:
        now = asyncio.get_running_loop().time()
        wanted = self._wanted
        if self._seat is not None and self._seat.stage.index == wanted:
            return self._with_pin(self._seat.status(now))
        # A stage that is being built counts as taken, or the client would give it to others too; and the stage that
        # is left for it as gone, or the client would route through it.
        return self._with_pin(ExpertStatus(seated=wanted is not None, stage=wanted or 0))

    def _with_pin(self, facts: ExpertStatus) -> ExpertStatus:
        return replace(facts, pinned=self._pinned is not None)

    def _announce(self) -> None:
        if self._config is None or self._context.directory.run is None:
            return
        facts = self._facts()
        is_leaving = self._phase == "draining"
        self._context.directory.announce(
            ExpertRecord(
                self._context.endpoint,
                seated=facts.seated and not is_leaving,
                stage=StageIndex(facts.stage),
                ready=facts.ready and not is_leaving,
                step=facts.step,
                round=facts.round,
                digest=facts.digest,
                pinned=facts.pinned,
                reason=str(self._reason),
            )
        )


def _check_stage(config: RunConfig, stage: StageIndex) -> None:
    if not 0 <= stage < config.model.stages:
        raise ConfigError(f"stage {stage} is out of range: run {config.id} has stages 0 to {config.model.stages - 1}")


def _stuck_seconds(device: Device, lease: float) -> float:
    """For how long one unit of work has kept the device busy, if that is far longer than any before."""
    held = device.statistics()
    if held.busy_since is None:
        return 0.0
    busy = time.monotonic() - held.busy_since
    longest = max(lease, STUCK_FACTOR * held.longest_seconds if held.jobs else FIRST_SECONDS)
    return busy if busy > longest else 0.0


def _why(error: BaseException) -> str:
    return error.reason if isinstance(error, DistqatError) else str(error)
