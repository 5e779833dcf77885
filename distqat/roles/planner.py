"""Carries out the plan: shows `plan` the swarm, and tells experts and trainers what it decides."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from distqat.config import RunConfig
from distqat.data.ledger import Ledger
from distqat.errors import DistqatError, StaleError
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex, short
from distqat.roles.context import RoleContext
from distqat.roles.leases import Leases
from distqat.roles.plan import Action, Assign, Dissolve, ExpertView, Form, Pipeline, View, mend_broken, missing, plan
from distqat.roles.remote import Remote
from distqat.roles.status import ExpertStatus, PipelineStatus

log = logging.getLogger(__name__)

BROKEN_LEASES = 3.0
"""Leases for which a pipeline may be broken while all its peers live; then it is given up and its peers regroup."""


class Planner:
    """The pipelines of one run, as its client has planned them."""

    def __init__(self, context: RoleContext, config: RunConfig, ledger: Ledger, leases: Leases) -> None:
        self.phase = "waiting"
        self.reason = "waiting: no expert has joined yet"
        self.is_finished = False
        self._context = context
        self._config = config
        self._ledger = ledger
        self._leases = leases
        self._nonce = os.urandom(2).hex()  # Keeps the names of pipelines apart from those of an earlier client.
        self._formed = 0  # Pipelines formed so far; names the next one.
        self._pipelines: dict[PipelineId, Pipeline] = {}
        self._reasons: dict[PipelineId, str] = {}
        self._ended: set[PipelineId] = set()  # Pipelines that are to be no more, whatever their trainers still say.
        self._moved: dict[PeerId, float] = {}  # When an expert was last given a stage.
        self._broken: dict[PipelineId, float] = {}  # Since when a pipeline's trainer has called it broken.
        self._orphaned: dict[str, float] = {}  # Since when nobody drives a pipeline that has claims.

    def pipelines(self) -> tuple[PipelineStatus, ...]:
        """The pipelines as planned; what they do is said by their trainers."""
        return tuple(
            PipelineStatus(line.id, line.epoch, line.route, reason=self._reasons[line.id])
            for line in self._pipelines.values()
        )

    async def act(self) -> None:
        """Look at the swarm, decide, and do it; one wave."""
        self._adopt()
        await self._keep_orders()
        self._release_orphans()
        view = self._view()
        if self._ledger.finished:
            await self._conclude(view)
            return
        if not view.trainers and not self._is_trainer_coming():
            self.reason = "taking the trainer role, since nobody has it"
            await self._context.take_role("trainer")
        await self._carry_out(plan(view, self._config.plan, asyncio.get_running_loop().time()))
        self.phase = "training" if self._pipelines else "waiting"
        count = len(self._pipelines)
        more = missing(self._view()).removeprefix("waiting: ")
        self.reason = f"{count} pipeline{'s' * (count != 1)}; no further one: {more}" if count else f"waiting: {more}"

    def _is_trainer_coming(self) -> bool:
        """Whether some daemon holds the role and has not learned the run, or opened its data, yet."""
        peers = self._context.directory.snapshot().peers.values()
        return any("trainer" in e.record.roles and e.record.run in (None, self._config.id) for e in peers)

    def _adopt(self) -> None:
        """Pipelines that an earlier client formed, and that a live trainer still drives, are this client's now."""
        for peer, line in self._lines():
            name = PipelineId(line.pipeline)
            if self._is_stray(name) or name in self._pipelines or not line.route:
                continue
            if {seat.peer for seat in line.route} & {s.peer for known in self._pipelines.values() for s in known.route}:
                # Two clients planned at once. Both pipelines would displace each other at the expert that they share.
                log.info("pipeline %s shares an expert with another one and is ended", name)
                self._ended.add(name)
                continue
            self._pipelines[name] = Pipeline(name, line.epoch, line.route, peer)
            self._reasons[name] = "formed by an earlier client"

    def _release_orphans(self) -> None:
        """Claims of pipelines that nobody has driven for a lease go to others.

        A trainer that was told to stop a pipeline first books its last steps, and shows it until then. One that was too
        slow to answer is given a lease to come back: until then it may still commit what it has claimed.
        """
        now = asyncio.get_running_loop().time()
        driven = self._pipelines.keys() | {line.pipeline for _, line in self._lines()}
        self._orphaned = {name: self._orphaned.get(name, now) for name in self._ledger.holders - driven}
        for name, since in self._orphaned.items():
            if now - since >= self._leases.seconds:
                log.info("nobody drives pipeline %s: %d samples go to others", name, self._ledger.release(name))

    async def _conclude(self, view: View) -> None:
        """The whole budget is committed; finished once every trainer says so; who is lost meanwhile is replaced."""
        lines = {line.pipeline: line for _, line in self._lines()}
        busy = [name for name in self._pipelines if name in lines and lines[name].phase != "finished"]
        await self._carry_out(mend_broken(replace(view, pipelines=tuple(self._pipelines[name] for name in busy))))
        busy = [name for name in busy if name in self._pipelines]
        self.is_finished = not busy
        self.phase = "finished"
        self.reason = f"the budget is committed; pipeline {busy[0]} is settling" if busy else "the budget is committed"

    def _view(self) -> View:
        """The live peers, as they described themselves last."""
        experts, trainers = [], []
        for peer, status in sorted(self._leases.statuses.items()):
            if status.run != self._config.id:
                continue
            for role in status.roles:
                if role.expert is not None and role.phase not in ("failed", "draining"):
                    experts.append(_expert_view(peer, status.endpoint, role.expert))
                elif role.role == "trainer" and role.phase in ("waiting", "training"):
                    trainers.append(peer)
        return View(
            num_stages=self._config.model.stages,
            experts=tuple(experts),
            trainers=tuple(trainers),
            pipelines=tuple(self._pipelines.values()),
            failing=self._failing(asyncio.get_running_loop().time()),
            moved=self._moved,
        )

    async def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            log.info("plan: %s", action)
            try:
                match action:
                    case Assign():
                        await self._assign(action)
                    case Form():
                        await self._form(action)
                    case Dissolve():
                        await self._dissolve(action)
            except DistqatError as error:
                # The next look at the swarm sees what is so now, and decides again.
                log.warning("plan: %s failed: %s", type(action).__name__, error)

    async def _assign(self, action: Assign) -> None:
        status = self._leases.statuses[action.peer]
        self._moved[action.peer] = asyncio.get_running_loop().time()
        answer = await self._remote(action.peer).assign(self._config.id, action.stage)
        # Known at once, not only at the next look at the peer.
        roles = tuple(replace(role, expert=answer) if role.role == "expert" else role for role in status.roles)
        self._leases.statuses[action.peer] = replace(status, roles=roles)

    async def _form(self, action: Form) -> None:
        known = self._pipelines.get(action.id) if action.id is not None else None
        if known is None:
            self._formed += 1
        name = known.id if known is not None else PipelineId(f"p{self._formed}-{self._nonce}")
        pipeline = Pipeline(name, known.epoch + 1 if known is not None else 1, action.route, action.trainer)
        # Known here before the trainer is told: an order whose answer is lost is repeated, not forgotten.
        self._pipelines[name] = pipeline
        self._reasons[name] = action.why
        await self._order(action.trainer, name, pipeline.epoch, action.route)

    async def _dissolve(self, action: Dissolve) -> None:
        pipeline = self._pipelines.pop(action.id)
        # Its trainer's last account still shows it, and must not bring it back.
        self._ended.add(action.id)
        del self._reasons[action.id]
        log.info("pipeline %s is dissolved: %s", pipeline.id, action.why)
        await self._order(pipeline.trainer, pipeline.id, pipeline.epoch + 1, ())

    async def _keep_orders(self) -> None:
        """Tell every trainer again what its own account shows that it has not heard."""
        told = {(peer, line.pipeline): line for peer, line in self._lines()}
        for pipeline in list(self._pipelines.values()):
            line = told.get((pipeline.trainer, pipeline.id))
            if line is None or line.epoch < pipeline.epoch:
                await self._order(pipeline.trainer, pipeline.id, pipeline.epoch, pipeline.route)
        for (peer, name), line in told.items():
            if self._is_stray(PipelineId(name)) and line.route:
                await self._order(peer, PipelineId(name), line.epoch + 1, ())

    def _is_stray(self, name: PipelineId) -> bool:
        """Whether a pipeline is one that this client has ended, or that it formed and gave up."""
        return name in self._ended or (name.endswith(self._nonce) and name not in self._pipelines)

    async def _order(self, trainer: PeerId, name: PipelineId, epoch: int, route: tuple[Seat, ...]) -> None:
        try:
            await self._remote(trainer).drive(self._config.id, name, epoch, route)
        except StaleError:
            log.debug("%s knows of pipeline %s epoch %d", short(trainer), name, epoch)
        except DistqatError as error:
            log.info("%s was not told of pipeline %s epoch %d: %s", short(trainer), name, epoch, error)

    def _lines(self) -> list[tuple[PeerId, PipelineStatus]]:
        """The pipelines as the live trainers of this run described them last."""
        return [
            (peer, line)
            for peer, status in sorted(self._leases.statuses.items())
            if status.run == self._config.id
            for role in status.roles
            for line in role.pipelines
        ]

    def _failing(self, now: float) -> frozenset[PipelineId]:
        """Pipelines that have been broken for so long that opening their routes again will not help."""
        broken = {PipelineId(line.pipeline) for _, line in self._lines() if line.phase == "broken"}
        self._broken = {name: self._broken.get(name, now) for name in broken & self._pipelines.keys()}
        patience = BROKEN_LEASES * self._leases.seconds
        return frozenset(name for name, since in self._broken.items() if now - since > patience)

    def _remote(self, peer: PeerId) -> Remote:
        status = self._leases.statuses.get(peer)
        if status is None:
            raise DistqatError(f"{short(peer)} is not there any more")
        return Remote(self._context.transport, status.endpoint)


def _expert_view(peer: PeerId, endpoint: Endpoint, expert: ExpertStatus) -> ExpertView:
    stage = StageIndex(expert.stage) if expert.seated else None
    return ExpertView(peer, endpoint, stage, expert.ready, expert.pinned)
