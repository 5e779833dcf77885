"""Carries out what the planner decides: tells experts and trainers, and sees to it that pipelines come to an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from distqat.errors import DistqatError, StaleError
from distqat.ids import PeerId, PipelineId, RunId, Seat, short
from distqat.roles.beside import DrivingRole
from distqat.roles.context import RoleContext
from distqat.roles.events.minutes import Minutes
from distqat.roles.fencing import Fencing
from distqat.roles.leases import Leases
from distqat.roles.lineup import Lineup
from distqat.roles.orders.order import Order
from distqat.roles.outlook import expert_view, is_leaving, testator
from distqat.roles.plan import Action, Assign, Dissolve, Follow, Form, Pipeline
from distqat.roles.remote import Remote
from distqat.roles.status import PeerStatus

log = logging.getLogger(__name__)


class Foreman:
    """Speaks to the experts and trainers of one run."""

    def __init__(
        self, context: RoleContext, run: RunId, lineup: Lineup, leases: Leases, fencing: Fencing, minutes: Minutes
    ) -> None:
        self._context = context
        self._run = run
        self._lineup = lineup
        self._leases = leases
        self._fencing = fencing
        self._minutes = minutes

    async def carry_out(self, actions: Sequence[Action]) -> None:
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
                    await self.dissolve(action)
        except DistqatError as error:
            # The next look at the swarm sees what is so now, and decides again.
            log.warning("plan: %s failed: %s", type(action).__name__, error)
            self._minutes.failed(action, error)

    async def _assign(self, action: Assign) -> None:
        self._minutes.assigned(action)
        status = self._status(action.peer)
        facts = [role.expert for role in status.roles if role.expert is not None]
        if any(expert_view(action.peer, status.endpoint, e).is_warm_for(action.stage) for e in facts):
            self._lineup.promoting[action.peer] = asyncio.get_running_loop().time()
        heir_of = testator(self._leases.statuses, self._lineup.known.values(), action.stage)
        await self._tell(action.peer, Order(action.stage, heir_of=heir_of))

    async def _tell(self, peer: PeerId, order: Order) -> None:
        status = self._status(peer)
        self._lineup.moved[peer] = asyncio.get_running_loop().time()
        answer = await Remote(self._context.transport, status.endpoint).assign(self._run, order)
        # Known at once, not only at the next look at the peer; it may have been lost meanwhile.
        if (last := self._leases.statuses.get(peer)) is not None:
            roles = tuple(replace(role, expert=answer) if role.role == "expert" else role for role in last.roles)
            self._leases.statuses[peer] = replace(last, roles=roles)

    async def _form(self, action: Form) -> None:
        if action.id in self._lineup.fenced:
            return
        known = self._lineup.known.get(action.id) if action.id is not None else None
        name = known.id if known is not None else self._lineup.new_name()
        epoch, begin = (known.epoch + 1, known.begin) if known is not None else (1, action.begin)
        pipeline = Pipeline(name, epoch, action.route, action.trainer, begin)
        # Those that leave are waited for, if nobody else has to be replaced: then nothing is replayed.
        gone = set(known.route) - set(action.route) if known is not None else set()
        in_order = bool(gone) and all(is_leaving(self._leases.statuses, seat.peer) for seat in gone)
        # Known here before the trainer is told: an order whose answer is lost is repeated, not forgotten.
        self._lineup.plan(pipeline, action.why)
        self._minutes.formed(pipeline, action.why)
        await self._order(action.trainer, name, pipeline.epoch, action.route, in_order)

    async def dissolve(self, action: Dissolve) -> None:
        """End a pipeline, once its steps come to an end."""
        pipeline = self._lineup.known[action.id]
        if not await self._is_over(pipeline):
            self._lineup.reasons[pipeline.id] = "waiting: it is without a trainer, and not all experts have left it"
            return
        self._lineup.end(action.id)
        log.info("pipeline %s is dissolved: %s", pipeline.id, action.why)
        self._minutes.dissolved(pipeline.id, action.why)
        await self._order(pipeline.trainer, pipeline.id, pipeline.epoch + 1, ())

    async def _is_over(self, pipeline: Pipeline) -> bool:
        """Whether its steps come to an end: its trainer sees to that, or else it is fenced."""
        if pipeline.id not in self._lineup.fenced and self._lineup.is_driven(pipeline):
            return True
        if self._fencing.has_experts:
            self._lineup.fenced.add(pipeline.id)
        return await self._fencing.end(pipeline.id, pipeline.route)

    async def keep_orders(self) -> None:
        """Tell every trainer again what its own account shows that it has not heard."""
        told = {(peer, line.pipeline): line for peer, line in self._lineup.lines()}
        for pipeline in [line for line in self._lineup.known.values() if line.id not in self._lineup.fenced]:
            line = told.get((pipeline.trainer, pipeline.id))
            if line is None or line.epoch < pipeline.epoch:
                await self._order(pipeline.trainer, pipeline.id, pipeline.epoch, pipeline.route)
        for (peer, name), line in told.items():
            if self._lineup.is_stray(PipelineId(name)) and line.route:
                await self._order(peer, PipelineId(name), line.epoch + 1, ())

    async def _order(
        self, trainer: PeerId, name: PipelineId, epoch: int, route: tuple[Seat, ...], in_order: bool = False
    ) -> None:
        try:
            begin = self._lineup.known[name].begin if name in self._lineup.known else None
            own = self._context.beside("trainer") if trainer == self._context.me else None
            if own is not None:
                await cast(DrivingRole, own).drive(name, epoch, route, in_order, begin)
            else:
                await self._remote(trainer).drive(self._run, name, epoch, route, in_order, begin)
        except StaleError:
            log.debug("%s knows of pipeline %s epoch %d", short(trainer), name, epoch)
        except DistqatError as error:
            log.info("%s was not told of pipeline %s epoch %d: %s", short(trainer), name, epoch, error)

    def _remote(self, peer: PeerId) -> Remote:
        return Remote(self._context.transport, self._status(peer).endpoint)

    def _status(self, peer: PeerId) -> PeerStatus:
        """What it said last; DistqatError if it has been lost since the plan was made."""
        status = self._leases.statuses.get(peer)
        if status is None:
            raise DistqatError(f"{short(peer)} is not there any more")
        return status
