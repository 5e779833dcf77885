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
from distqat.ids import PeerId, PipelineId, Seat, short
from distqat.roles.checkpoint.revival import Reviver
from distqat.roles.context import RoleContext
from distqat.roles.events.minutes import Minutes
from distqat.roles.fencing import Fencing
from distqat.roles.leases import Leases
from distqat.roles.orders import Order
from distqat.roles.outlook import expert_view, is_leaving, lines, outlook, testator
from distqat.roles.plan import (
    Action,
    Assign,
    Dissolve,
    Follow,
    Form,
    Pipeline,
    View,
    keep,
    missing,
    plan,
)
from distqat.roles.refusals import Hopes
from distqat.roles.remote import Remote
from distqat.roles.status import PeerStatus, PipelineStatus

log = logging.getLogger(__name__)

MOST_WAVES = 3
"""Of actions at one look; what is left is decided at the next."""

BROKEN_LEASES = 3.0
"""Leases for which a pipeline may be broken while all its peers live; then it is given up and its peers regroup."""

GRACE_LEASES = 2.0
"""Leases for which a pipeline waits at most for who takes the place of a lost expert."""


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
        self._hopes = Hopes()
        self._hopeless = ""  # Why the run has failed; empty while it has not.
        self._minutes = Minutes(context.telemetry.events, config.model.name)
        self._nonce = os.urandom(2).hex()  # Keeps the names of pipelines apart from those of an earlier client.
        self._formed = 0  # Pipelines formed so far; names the next one.
        self._reviver = reviver
        self._has_concluded = False  # The pipelines that this client knew are done.
        self._pipelines: dict[PipelineId, Pipeline] = {}
        self._reasons: dict[PipelineId, str] = {}
        self._ended: set[PipelineId] = set()  # Pipelines that are to be no more, whatever their trainers still say.
        self._fenced: set[PipelineId] = set()  # Of the planned ones: a fence was begun, and their routes open no more.
        self._moved: dict[PeerId, float] = {}  # When an expert was last given a stage.
        self._promoting: dict[PeerId, float] = {}  # When a warm spare was last told to take its stage.
        self._lacking: dict[PipelineId, float] = {}  # Since when a pipeline has lacked an expert.
        self._broken: dict[tuple[PipelineId, int], float] = {}  # Since when a trainer has called a route broken.
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
        await self._release_orphans()
        await self._end_fenced()
        view = self._view()
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
        self.phase = "training" if self._pipelines else "waiting"
        count = len(self._pipelines)
        more = missing(self._view()).removeprefix("waiting: ")
        self.reason = f"{count} pipeline{'s' * (count != 1)}; no further one: {more}" if count else f"waiting: {more}"

    async def _has_failed(self) -> bool:
        """End pipelines that give up; all of them, for good, when none gets anywhere whatever it trains on."""
        failed = {line.pipeline: line.reason for _, line in self._lines() if line.phase == "failed"}
        self._hopeless = self._hopeless or self._hopes.why_hopeless(failed, self._ledger.committed)
        for name in list(self._pipelines):
            if self._hopeless or name in failed:
                await self._dissolve(Dissolve(name, failed.get(name, self._hopeless)))
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
                # What they did is of a course that the run has left; who still drives one is told to stop.
                self._ended |= self._pipelines.keys()
                self._pipelines.clear()
            return True
        forms = reviver.take(self._view())
        await self._carry_out(forms)
        return bool(forms)

    async def _act_on(self, view: View) -> None:
        """One wave; another at once if somebody has taken a stage and may be ready already."""
        for _ in range(MOST_WAVES):
            actions = plan(view, self._config.plan, asyncio.get_running_loop().time())
            await self._carry_out(actions)
            if not any(isinstance(action, Assign) for action in actions):
                return
            view = self._view()

    async def _get_trainer(self, view: View) -> None:
        """Somebody has to drive pipelines."""
        if not view.trainers and not self._is_trainer_coming():
            self.reason = "taking the trainer role, since nobody has it"
            await self._context.take_role("trainer")

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
            self._minutes.adopted(self._pipelines[name])

    async def _release_orphans(self) -> None:
        """Claims of pipelines that nobody has driven for a lease go to others, once these are fenced.

        A trainer that was told to stop a pipeline first books its last steps, and shows it until then.
        """
        now = asyncio.get_running_loop().time()
        driven = self._pipelines.keys() | {line.pipeline for _, line in self._lines()}
        self._orphaned = {name: self._orphaned.get(name, now) for name in self._ledger.holders - driven}
        for name, since in self._orphaned.items():
            if now - since >= self._leases.seconds and self._fencing.has_experts:
                # A trainer that comes back with it meanwhile is told to stop.
                self._ended.add(PipelineId(name))
                if await self._fencing.end(PipelineId(name)):
                    self._minutes.fenced(name)

    async def _end_fenced(self) -> None:
        """A pipeline whose fence was begun is over, though its trainer may be back before all experts have answered."""
        for name in self._fenced & self._pipelines.keys():
            if self._pipelines[name].trainer in self._leases.statuses:
                await self._dissolve(Dissolve(name, "its trainer was lost, and no route of it opens any more"))

    async def _conclude(self, view: View) -> None:
        """The whole budget is committed; finished once every trainer says so; who is lost meanwhile is replaced."""
        lines = {line.pipeline: line for _, line in self._lines()}
        busy = [name for name in self._pipelines if name in lines and lines[name].phase != "finished"]
        view = replace(view, pipelines=tuple(self._pipelines[name] for name in busy))
        await self._carry_out(keep(view, self._config.plan, asyncio.get_running_loop().time()))
        busy = [name for name in busy if name in self._pipelines]
        self.is_finished = not busy
        self._has_concluded |= self.is_finished and bool(self._pipelines)
        self.phase = "finished"
        self.reason = f"the budget is committed; pipeline {busy[0]} is settling" if busy else "the budget is committed"

    def _view(self) -> View:
        """The live peers, as they described themselves last."""
        now = asyncio.get_running_loop().time()
        stages, grace = self._config.model.stages, GRACE_LEASES * self._leases.seconds
        view = outlook(self._leases.statuses, self._config.id, stages, self._pipelines.values())
        view = replace(view, moved=self._moved, promoting=self._promoting, grace=grace)
        self._lacking = {name: self._lacking.get(name, now) for name in view.lacks}
        return replace(view, lacking=self._lacking, failing=self._failing(now))

    async def _carry_out(self, actions: Sequence[Action]) -> None:
        """All at once: a peer that is slow to answer keeps nobody waiting but the next look."""
        async with asyncio.TaskGroup() as group:
            for action in actions:
                log.info("plan: %s", action)
                group.create_task(self._try(action))

    async def _try(self, action: Action) -> None:
        try:
            match action:
                case Assign():
                    await self._assign(action)
                case Follow(peer, stage):
                    await self._tell(peer, Order(stage, is_seated=False))
                case Form():
                    await self._form(action)
                case Dissolve():
                    await self._dissolve(action)
        except DistqatError as error:
            # The next look at the swarm sees what is so now, and decides again.
            log.warning("plan: %s failed: %s", type(action).__name__, error)
            self._minutes.failed(action, error)

    async def _assign(self, action: Assign) -> None:
        self._minutes.assigned(action)
        status = self._status(action.peer)
        facts = [role.expert for role in status.roles if role.expert is not None]
        if any(expert_view(action.peer, status.endpoint, e).is_warm_for(action.stage) for e in facts):
            self._promoting[action.peer] = asyncio.get_running_loop().time()
        heir_of = testator(self._leases.statuses, self._pipelines.values(), action.stage)
        await self._tell(action.peer, Order(action.stage, heir_of=heir_of))

    async def _tell(self, peer: PeerId, order: Order) -> None:
        status = self._status(peer)
        self._moved[peer] = asyncio.get_running_loop().time()
        answer = await Remote(self._context.transport, status.endpoint).assign(self._config.id, order)
        # Known at once, not only at the next look at the peer; it may have been lost meanwhile.
        if (last := self._leases.statuses.get(peer)) is not None:
            roles = tuple(replace(role, expert=answer) if role.role == "expert" else role for role in last.roles)
            self._leases.statuses[peer] = replace(last, roles=roles)

    async def _form(self, action: Form) -> None:
        if action.id in self._fenced:
            return
        known = self._pipelines.get(action.id) if action.id is not None else None
        if known is None:
            self._formed += 1
        name = known.id if known is not None else PipelineId(f"p{self._formed}-{self._nonce}")
        epoch, begin = (known.epoch + 1, known.begin) if known is not None else (1, action.begin)
        pipeline = Pipeline(name, epoch, action.route, action.trainer, begin)
        # Those that leave are waited for, if nobody else has to be replaced: then nothing is replayed.
        gone = set(known.route) - set(action.route) if known is not None else set()
        in_order = bool(gone) and all(is_leaving(self._leases.statuses, seat.peer) for seat in gone)
        # Known here before the trainer is told: an order whose answer is lost is repeated, not forgotten.
        self._pipelines[name] = pipeline
        self._reasons[name] = action.why
        self._minutes.formed(pipeline, action.why)
        await self._order(action.trainer, name, pipeline.epoch, action.route, in_order)

    async def _dissolve(self, action: Dissolve) -> None:
        pipeline = self._pipelines[action.id]
        if not await self._is_over(pipeline):
            self.reason = f"waiting: pipeline {pipeline.id} is without a trainer, and not all experts have left it"
            return
        del self._pipelines[action.id]
        self._fenced.discard(action.id)
        # Its trainer's last account still shows it, and must not bring it back.
        self._ended.add(action.id)
        del self._reasons[action.id]
        log.info("pipeline %s is dissolved: %s", pipeline.id, action.why)
        self._minutes.dissolved(pipeline.id, action.why)
        await self._order(pipeline.trainer, pipeline.id, pipeline.epoch + 1, ())

    async def _is_over(self, pipeline: Pipeline) -> bool:
        """Whether its steps come to an end: its trainer sees to that, or else it is fenced."""
        if pipeline.id not in self._fenced and self._is_driven(pipeline):
            return True
        if self._fencing.has_experts:
            self._fenced.add(pipeline.id)
        return await self._fencing.end(pipeline.id, pipeline.route)

    def _is_driven(self, pipeline: Pipeline) -> bool:
        """Whether its trainer is there and speaks of it: then it books its last steps itself."""
        return any((peer, line.pipeline) == (pipeline.trainer, pipeline.id) for peer, line in self._lines())

    async def _keep_orders(self) -> None:
        """Tell every trainer again what its own account shows that it has not heard."""
        told = {(peer, line.pipeline): line for peer, line in self._lines()}
        for pipeline in [line for line in self._pipelines.values() if line.id not in self._fenced]:
            line = told.get((pipeline.trainer, pipeline.id))
            if line is None or line.epoch < pipeline.epoch:
                await self._order(pipeline.trainer, pipeline.id, pipeline.epoch, pipeline.route)
        for (peer, name), line in told.items():
            if self._is_stray(PipelineId(name)) and line.route:
                await self._order(peer, PipelineId(name), line.epoch + 1, ())

    def _is_stray(self, name: PipelineId) -> bool:
        """Whether a pipeline is one that this client has ended, or that it formed and gave up."""
        return name in self._ended or (name.endswith(self._nonce) and name not in self._pipelines)

    async def _order(
        self, trainer: PeerId, name: PipelineId, epoch: int, route: tuple[Seat, ...], in_order: bool = False
    ) -> None:
        try:
            begin = self._pipelines[name].begin if name in self._pipelines else None
            await self._remote(trainer).drive(self._config.id, name, epoch, route, in_order, begin)
        except StaleError:
            log.debug("%s knows of pipeline %s epoch %d", short(trainer), name, epoch)
        except DistqatError as error:
            log.info("%s was not told of pipeline %s epoch %d: %s", short(trainer), name, epoch, error)

    def _lines(self) -> list[tuple[PeerId, PipelineStatus]]:
        return lines(self._leases.statuses, self._config.id)

    def _failing(self, now: float) -> frozenset[PipelineId]:
        """Pipelines that have been broken for so long that opening their routes again will not help."""
        broken = {line.pipeline for _, line in self._lines() if line.phase == "broken"}
        # A route that is waited for, or that was renewed, has its time from then on.
        routes = [(p.id, p.epoch) for p in self._pipelines.values() if p.id in broken and p.id not in self._lacking]
        self._broken = {route: self._broken.get(route, now) for route in routes}
        patience = BROKEN_LEASES * self._leases.seconds
        return frozenset(name for (name, _), since in self._broken.items() if now - since > patience)

    def _remote(self, peer: PeerId) -> Remote:
        return Remote(self._context.transport, self._status(peer).endpoint)

    def _status(self, peer: PeerId) -> PeerStatus:
        """What it said last; DistqatError if it has been lost since the plan was made."""
        status = self._leases.statuses.get(peer)
        if status is None:
            raise DistqatError(f"{short(peer)} is not there any more")
        return status
