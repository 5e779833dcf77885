"""The mirror: follows what every stage commits, writes checkpoints of it, and gives them back to whoever needs them.

It computes nothing and takes no part in rounds, so one disk that is safe is enough for a run whose experts come and go.
A round that is a checkpoint for experts is one for the mirror too; of several rounds that it hears of at once it works
out the last that is one from the averages that were kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from distqat.aio import Backoff, supervise
from distqat.averaging import kept
from distqat.averaging.kept import Shelf
from distqat.averaging.outer import OuterState
from distqat.averaging.state.messages import SERVICE
from distqat.config import RunConfig
from distqat.data.claims import LedgerSnapshot
from distqat.events import Kind, Subject
from distqat.ids import StageIndex
from distqat.model.device import Device
from distqat.roles.checkpoint.archive import Archive, Stock
from distqat.roles.checkpoint.cadence import is_due
from distqat.roles.checkpoint.files import CONFIG, Manifest
from distqat.roles.checkpoint.keeper import Keeper, keeper_of
from distqat.roles.checkpoint.saver import OUTER, checkpoint_of, tensors_of
from distqat.roles.context import RoleContext, RoleOptions
from distqat.roles.follower import Follower
from distqat.roles.holding import Holding, Workshop, check_model, open_holding
from distqat.roles.status import RoleStatus
from distqat.telemetry import Reason

log = logging.getLogger(__name__)


FOLLOW_ONLY = 0.0
"""No copies of local state."""


@asynccontextmanager
async def open_role(context: RoleContext, options: RoleOptions) -> AsyncIterator[Mirror]:
    """Follow all stages while the role is held."""
    mirror = Mirror(context)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(supervise("mirror", mirror.work, Backoff(0.5, 10.0), mirror.failed))
        try:
            yield mirror
        finally:
            task.cancel()


class Mirror:
    """Holds what is committed of every stage."""

    def __init__(self, context: RoleContext) -> None:
        self._context = context
        self._reason = Reason(log, "waiting: no run is known yet")
        self._phase = "waiting"
        self._keeper: Keeper | None = None  # None until the run is known and its checkpoints are found.
        self._stocks: dict[StageIndex, Stock] = {}  # Of the stages that are built.

    def __repr__(self) -> str:
        return f"<Mirror {self._phase}: {self._reason}>"

    def status(self) -> RoleStatus:
        """Phase, reason, and the checkpoints."""
        checkpoints = self._keeper.status() if self._keeper is not None else None
        return RoleStatus("mirror", self._phase, str(self._reason), checkpoints=checkpoints)

    def books(self) -> LedgerSnapshot | None:
        """The run's books that lie beside the checkpoints; None: there are none."""
        return self._keeper.books.newest if self._keeper is not None and self._keeper.books is not None else None

    async def drain(self) -> None:
        """Finish the checkpoint that is being written."""
        self._phase = "draining"
        if self._keeper is not None:
            await self._keeper.wait_idle()

    def failed(self, error: BaseException) -> None:
        """The work failed and will be tried again."""
        self._phase = "failed"
        self._reason.set(f"failed: {error}; trying again", logging.WARNING)

    async def work(self) -> None:
        """Learn the run, then follow all its stages."""
        context = self._context
        config = await context.run.wait()
        check_model(context, config)
        self._phase = "joining"
        self._reason.set("looking for checkpoints")
        keeper = keeper_of(context, config)
        await keeper.scan()
        self._keeper = keeper
        if keeper.checkpoints:
            context.history.remember(config.id)
        archive = Archive(self._stocks)
        async with Device.open("cpu", context.settings.daemon.threads) as device, asyncio.TaskGroup() as group:
            workshop = Workshop(config, device, device)
            group.create_task(supervise("checkpoints", keeper.work, Backoff(1.0, 10.0)))
            context.server.add(archive.service())
            try:
                for index in range(config.model.stages):
                    group.create_task(
                        self._mirror(workshop, StageIndex(index), keeper), name=f"mirroring stage {index}"
                    )
                self._phase = "following"
                self._reason.set(f"follows {config.model.stages} stages")
                await asyncio.Event().wait()
            finally:
                self._stocks.clear()
                await context.server.remove(SERVICE)

    async def _mirror(self, workshop: Workshop, index: StageIndex, keeper: Keeper) -> None:
        """One stage, for ever."""
        async with open_holding(self._context, workshop, index) as holding:
            committed = holding.averager.committed
            self._stocks[index] = Stock(holding.circle, committed, keeper)
            name = holding.stage.name
            self._context.telemetry.events.record(Kind.MIRRORING, f"mirrors {name}", Subject(stage=name))
            reason = Reason(log, "")
            async with asyncio.TaskGroup() as group:
                group.create_task(Follower(self._context, holding, reason, FOLLOW_ONLY).follow())
                await self._keep_saving(workshop.config, holding, keeper)

    async def _keep_saving(self, config: RunConfig, holding: Holding, keeper: Keeper) -> None:
        committed = holding.averager.committed
        before: OuterState | None = None
        while True:
            await committed.wait_other(before.digest if before is not None else "")
            after = committed.outer
            assert after is not None
            due = partial(_due, before, after, committed.kept, holding, config.checkpoint.steps)
            state = await holding.circle.work(due)
            if state is not None:
                self._save(config, holding.stage.index, state, keeper)
            before = after

    def _save(self, config: RunConfig, stage: StageIndex, state: OuterState, keeper: Keeper) -> None:
        checkpoint = checkpoint_of(stage, state, None, None)
        manifest = Manifest(config.id, self._context.me, checkpoint, {CONFIG: config.canonical()})
        keeper.offer(manifest, {OUTER: tensors_of(state)})


def _due(before: OuterState | None, after: OuterState, shelf: Shelf, holding: Holding, every: int) -> OuterState | None:
    """Of the states on the way from one to the other, as far as they can be worked out, the last that is a checkpoint:
    one is written at a time. What is found at first is none, since other stages may be found at other cuts."""
    if before is None:
        return None
    missed = [one for one in shelf.since(before.round, before.digest) if one.round < after.round]
    if not missed:
        return after if is_due(before.cut, after.cut, every) else None
    found, state = None, before
    for one in missed:
        last = state
        state = after if one is missed[-1] else kept.replay(state, one, holding.circle.phase(one.round))
        if is_due(last.cut, state.cut, every):
            found = state
    return found
