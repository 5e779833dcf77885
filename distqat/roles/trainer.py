"""The trainer: drives the pipelines that the client orders it to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from distqat.aio import Backoff, supervise
from distqat.config import RunConfig
from distqat.data.claims import Claim
from distqat.data.client import LedgerClient, RemoteClaims
from distqat.data.reading import OwnReading, Reading, is_served
from distqat.data.server.feed import Feed
from distqat.discovery.records import Pace, TrainerRecord
from distqat.errors import DistqatError, RefusedError
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, short
from distqat.roles.beside import JudgingRole
from distqat.roles.checkpoint.words import Begin
from distqat.roles.context import RESTARTS, RoleContext, RoleOptions
from distqat.roles.drive import Drive
from distqat.roles.fuel import Fuel
from distqat.roles.remote import Remote
from distqat.roles.status import PipelineStatus, RoleStatus
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 0.5


@asynccontextmanager
async def open_role(context: RoleContext, options: RoleOptions) -> AsyncIterator[Trainer]:
    """Drive pipelines while the role is held."""
    async with asyncio.TaskGroup() as group:
        trainer = Trainer(context, group)
        task = group.create_task(supervise("trainer", trainer.prepare, Backoff(1.0, 10.0), trainer.failed, RESTARTS))
        try:
            yield trainer
        finally:
            task.cancel()
            trainer.stop()
            context.directory.withdraw(TrainerRecord)


class Trainer:
    """Holds the drives of one daemon."""

    def __init__(self, context: RoleContext, group: asyncio.TaskGroup) -> None:
        self._context = context
        self._group = group  # Owns the drives' tasks.
        self._reason = Reason(log, "waiting: no run is known yet")
        self._phase = "waiting"
        self._fuel: Fuel | None = None  # None until samples can be read.
        self._feed: Feed | None = None  # None where no data server is asked.
        self._feeding: asyncio.Task[None] | None = None  # Keeps the connection to it.
        self._drives: dict[PipelineId, Drive] = {}
        self._tasks: dict[PipelineId, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Trainer {self._phase} {len(self._drives)} pipelines>"

    def status(self) -> RoleStatus:
        """Phase, reason, and the pipelines."""
        now = asyncio.get_running_loop().time()
        lines = tuple(drive.status(now) for drive in self._drives.values())
        return RoleStatus("trainer", self._phase, str(self._reason), pipelines=lines)

    def failed(self, error: BaseException) -> None:
        """Preparing failed and will be tried again."""
        self._phase = "failed"
        self._reason.set(f"{error}", logging.WARNING)

    async def prepare(self) -> None:
        """Learn the run, open its data set, and say that orders are taken; then keep saying what is done."""
        context = self._context
        config = await context.run.wait()
        self._phase = "joining"
        reading = await self._open_reading(config)
        self._fuel = Fuel(context.me, context.transport, config, reading, context.telemetry, self._paces, self._suspect)
        while self._phase != "draining":
            self._forget_ended()
            busy = sum(not task.done() for task in self._tasks.values())
            self._phase = "training" if busy else "waiting"
            self._reason.set(f"driving {busy} pipelines" if busy else "waiting: no pipeline to drive", logging.DEBUG)
            self._announce()
            await asyncio.sleep(ANNOUNCE_SECONDS)

    async def _open_reading(self, config: RunConfig) -> Reading:
        """The samples: from the data server, or read here."""
        if not is_served(config):
            self._reason.set(f"opening data source {config.data.source}")
            return await OwnReading.open(config)
        if self._feed is None:
            self._feed = Feed(self._context.transport, self._claims(config).where, config.id)
            self._feeding = self._group.create_task(self._feed.work(), name="feed")
        while not self._feed.is_ready:
            self._reason.set(self._feed.waiting)
            await self._feed.wait_ready(ANNOUNCE_SECONDS)
        return self._feed

    async def drive(
        self,
        pipeline: PipelineId,
        epoch: int,
        route: tuple[Seat, ...],
        in_order: bool = False,
        begin: Begin | None = None,
    ) -> PipelineStatus:
        """Drive this route from now on, or after the steps under way; an empty one ends the pipeline. A pipeline that
        is not driven here yet goes on at `begin`.

        Raises RefusedError, StaleError.
        """
        if self._fuel is None or self._phase == "draining":
            raise RefusedError(f"the trainer takes no orders now: {self._reason}")
        drive = self._drives.get(pipeline)
        if drive is None and not route:
            return PipelineStatus(pipeline, epoch, phase="waiting", reason="not driven here")
        if drive is None:
            data = LedgerClient(pipeline, self._fuel.reading, self._claims(self._fuel.config))
            drive = Drive(self._fuel, pipeline, data, begin)
            self._drives[pipeline] = drive
        drive.order(epoch, route, in_order)
        if route and pipeline not in self._tasks:
            work = supervise(f"pipeline {pipeline}", drive.work, Backoff(0.5, 5.0))
            self._tasks[pipeline] = self._group.create_task(work, name=pipeline)
        return drive.status(asyncio.get_running_loop().time())

    def booked(self) -> tuple[Claim, ...]:
        """What was booked of the pipelines that are driven here: a client with older books learns it."""
        return tuple(claim for drive in self._drives.values() for claim in drive.booked())

    def _forget_ended(self) -> None:
        """Pipelines that were stopped, and whose last step is booked."""
        for name in [name for name, task in self._tasks.items() if task.done() and not self._drives[name].is_wanted]:
            del self._drives[name], self._tasks[name]

    async def drain(self) -> None:
        """Finish the steps under way, give back what is claimed, and take no further orders."""
        self._phase = "draining"
        self._reason.set("draining: finishing the steps under way")
        for drive in self._drives.values():
            drive.drain()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def stop(self) -> None:
        """Drop everything now."""
        for task in self._tasks.values():
            task.cancel()
        if self._feeding is not None:
            self._feeding.cancel()

    def _claims(self, config: RunConfig) -> RemoteClaims:
        return RemoteClaims(self._context.transport, self._find_client, config.id)

    def _find_client(self) -> Endpoint | None:
        """Where the run's planning client answers."""
        clients = self._context.directory.snapshot().clients
        planning = sorted((peer, e.record.endpoint) for peer, e in clients.items() if e.record.planning)
        return planning[0][1] if planning else None

    def _suspect(self, peer: PeerId, reason: str) -> None:
        """Let the client look at a peer at once: a route broke there."""
        own = self._context.beside("client")
        if own is not None and cast(JudgingRole, own).suspect(peer):
            return
        self._group.create_task(self._report(peer, reason), name=f"report of {peer}")

    async def _report(self, peer: PeerId, reason: str) -> None:
        client, run = self._find_client(), self._context.run.id
        entry = self._context.directory.snapshot().experts.get(peer)
        if client is None or run is None or entry is None:
            return
        try:
            await Remote(self._context.transport, client).lost(run, peer, entry.record.endpoint, reason)
        except DistqatError as error:
            log.info("the client does not hear that a route broke at %s: %s", short(peer), error)

    def _paces(self) -> list[Pace]:
        """How fast the run's pipelines are, as far as their trainers say so and live."""
        trainers = self._context.directory.snapshot().trainers.values()
        return list({pace.pipeline: pace for entry in trainers for pace in entry.record.paces}.values())

    def _announce(self) -> None:
        context = self._context
        steps = sum(drive.status(0.0).step for drive in self._drives.values())
        paces = tuple(pace for drive in self._drives.values() if (pace := drive.pace) is not None)
        context.directory.announce(
            TrainerRecord(context.endpoint, tuple(self._drives), step=steps, reason=str(self._reason), paces=paces)
        )
