"""What is done at each look at the swarm: what is over is ended, what can be goes on, and `plan` decides the rest."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from distqat.config import RunConfig
from distqat.data.ledger import Ledger
from distqat.ids import PipelineId
from distqat.roles.checkpoint.revival import Reviver
from distqat.roles.context import RoleContext
from distqat.roles.events.minutes import Minutes
from distqat.roles.fencing import Fencing
from distqat.roles.foreman import Foreman
from distqat.roles.leases import Leases
from distqat.roles.lineup import Lineup
from distqat.roles.plan import (
    Assign,
    Dissolve,
    View,
    keep,
    missing,
    plan,
)
from distqat.roles.refusals import Hopes
from distqat.roles.status import PipelineStatus

log = logging.getLogger(__name__)

MOST_WAVES = 3
"""Of actions at one look; what is left is decided at the next."""


class Planner:
    """The pipelines of one run, as its client has planned them."""

    def __init__(
        self, context: RoleContext, config: RunConfig, ledger: Ledger, leases: Leases, reviver: Reviver
    ) -> None:
        self.phase = "waiting"
        self.reason = "waiting: no expert has joined yet"
        self.is_finished = False
        self._context = context
        self._config = config
        self._ledger = ledger
        self._leases = leases
        self._fencing = Fencing(context.transport, config.id, ledger, leases)
        self._minutes = Minutes(context.telemetry.events, config.model.name)
        self._lineup = Lineup(config, leases)
        self._foreman = Foreman(context, config.id, self._lineup, leases, self._fencing, self._minutes)
        self._hopes = Hopes()
        self._hopeless = ""  # Why the run has failed; empty while it has not.
        self._reviver = reviver
        self._has_concluded = False  # The pipelines that this client knew are done.
        self._orphaned: dict[str, float] = {}  # Since when nobody drives a pipeline that has claims.

    def pipelines(self) -> tuple[PipelineStatus, ...]:
        """The pipelines as planned; what they do is said by their trainers."""
        return self._lineup.statuses()

    async def act(self) -> None:
        """Look at the swarm, decide, and do it; one wave."""
        for pipeline in self._lineup.adopt():
            self._minutes.adopted(pipeline)
        await self._foreman.keep_orders()
        await self._release_orphans()
        await self._end_fenced()
        view = self._lineup.view()
        if self._ledger.finished:
            # That all is booked does not say that anybody still holds it.
            if self._has_concluded or not await self._is_reviving(view):
                await self._conclude(view)
            return
        if await self._has_failed():
            return
        await self._get_trainer(view)
        if await self._is_reviving(view):
            return
        await self._act_on(view)
        self.phase = "training" if self._lineup.known else "waiting"
        count = len(self._lineup.known)
        more = missing(self._lineup.view(), self._config.plan.max_pipelines).removeprefix("waiting: ")
        self.reason = f"{count} pipeline{'s' * (count != 1)}; no further one: {more}" if count else f"waiting: {more}"

    async def _has_failed(self) -> bool:
        """End pipelines that give up; all of them, for good, when none gets anywhere whatever it trains on."""
        failed = {line.pipeline: line.reason for _, line in self._lineup.lines() if line.phase == "failed"}
        self._hopeless = self._hopeless or self._hopes.why_hopeless(failed, self._ledger.committed)
        for name in list(self._lineup.known):
            if self._hopeless or name in failed:
                await self._foreman.dissolve(Dissolve(name, failed.get(name, self._hopeless)))
        if self._hopeless:
            self.phase, self.reason = "failed", self._hopeless
        return bool(self._hopeless)

    async def _is_reviving(self, view: View) -> bool:
        """Whether stages come out of checkpoints; the pipelines that go on then are the first that are formed."""
        reviver = self._reviver
        if await reviver.act(bool(view.trainers)):
            self.phase, self.reason, self.is_finished = "waiting", reviver.reason, False
            await self._get_trainer(view)
            if reviver.is_whole:
                self._lineup.end_all()
            return True
        forms = reviver.take(self._lineup.view())
        await self._foreman.carry_out(forms)
        return bool(forms)

    async def _act_on(self, view: View) -> None:
        """One wave; another at once if somebody has taken a stage and may be ready already."""
        for _ in range(MOST_WAVES):
            actions = plan(view, self._config.plan, asyncio.get_running_loop().time())
            await self._foreman.carry_out(actions)
            if not any(isinstance(action, Assign) for action in actions):
                return
            view = self._lineup.view()

    async def _get_trainer(self, view: View) -> None:
        """Somebody has to drive pipelines."""
        if not view.trainers and not self._is_trainer_coming():
            self.reason = "taking the trainer role, since nobody has it"
            await self._context.take_role("trainer")

    def _is_trainer_coming(self) -> bool:
        """Whether some daemon holds the role and has not learned the run, or opened its data, yet."""
        peers = self._context.directory.snapshot().peers.values()
        return any("trainer" in e.record.roles and e.record.run in (None, self._config.id) for e in peers)

    async def _release_orphans(self) -> None:
        """Claims of pipelines that nobody has driven for a lease go to others, once these are fenced.

        A trainer that was told to stop a pipeline first books its last steps, and shows it until then.
        """
        now = asyncio.get_running_loop().time()
        driven = self._lineup.known.keys() | {line.pipeline for _, line in self._lineup.lines()}
        self._orphaned = {name: self._orphaned.get(name, now) for name in self._ledger.holders - driven}
        for name, since in self._orphaned.items():
            if now - since >= self._leases.seconds and self._fencing.has_experts:
                # A trainer that comes back with it meanwhile is told to stop.
                self._lineup.ended.add(PipelineId(name))
                if await self._fencing.end(PipelineId(name)):
                    self._minutes.fenced(name)

    async def _end_fenced(self) -> None:
        """A pipeline whose fence was begun is over, though its trainer may be back before all experts have answered."""
        for name in self._lineup.fenced & self._lineup.known.keys():
            if self._lineup.known[name].trainer in self._leases.statuses:
                await self._foreman.dissolve(Dissolve(name, "its trainer was lost, and no route of it opens any more"))

    async def _conclude(self, view: View) -> None:
        """The whole budget is committed; finished once every trainer says so; who is lost meanwhile is replaced."""
        lines = {line.pipeline: line for _, line in self._lineup.lines()}
        busy = [name for name in self._lineup.known if name in lines and lines[name].phase != "finished"]
        view = replace(view, pipelines=tuple(self._lineup.known[name] for name in busy))
        await self._foreman.carry_out(keep(view, self._config.plan, asyncio.get_running_loop().time()))
        busy = [name for name in busy if name in self._lineup.known]
        self.is_finished = not busy
        self._has_concluded |= self.is_finished and bool(self._lineup.known)
        self.phase = "finished"
        self.reason = f"the budget is committed; pipeline {busy[0]} is settling" if busy else "the budget is committed"
