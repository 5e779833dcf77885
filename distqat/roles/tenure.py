"""A stage, held by an expert: followed for as long as it has no seat, then a seat of it, until it is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from distqat.discovery.records import ExpertRecord
from distqat.errors import ComputeError
from distqat.events import Kind, Subject
from distqat.ids import Endpoint, StageIndex
from distqat.model.agreement import Verdict
from distqat.pipeline.service import PipelineService
from distqat.roles.arrival import Arrival
from distqat.roles.checkpoint.vault import Vault
from distqat.roles.context import RoleContext
from distqat.roles.follower import Follower
from distqat.roles.holding import Holding, Workshop, open_holding, open_seat, siblings
from distqat.roles.orders.order import Order
from distqat.roles.seat import Seat
from distqat.roles.status import ExpertStatus
from distqat.telemetry import Reason


@dataclass(eq=False)
class Posture:
    """What an expert shows of what it does, whatever it holds."""

    reason: Reason
    phase: str = "waiting"
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while routes may be opened through its seat."""


class Tenure:
    """One stage that an expert holds."""

    def __init__(
        self,
        context: RoleContext,
        posture: Posture,
        vault: Vault,
        order: Order,
        on_sat: Callable[[], None],
        on_fault: Callable[[StageIndex, ComputeError], None],
    ) -> None:
        assert order.stage is not None
        self.index = order.stage
        self.order = order  # The last one for this stage.
        self.follower: Follower | None = None  # None but while the stage is held.
        self.seat: Seat | None = None  # None while it has no seat.
        self.routes: PipelineService | None = None  # None as the seat.
        self._context = context
        self._posture = posture
        self._vault = vault
        self._on_sat = on_sat  # Called when routes may be opened.
        self._on_fault = on_fault  # Called when the stage's own code has failed.
        self._promoted = asyncio.Event()  # Set when the stage that is followed is to have a seat.

    def __repr__(self) -> str:
        return f"<Tenure of stage {self.index}: {self.seat or self.follower}>"

    def told(self, order: Order) -> None:
        """Another order for this stage: if it is followed, that may be to take a seat of it."""
        is_promotion, self.order = order.is_promotion(self.order), order
        if is_promotion:
            self._promoted.set()

    async def serve(self, workshop: Workshop) -> None:
        """Hold the stage: follow it for as long as it has no seat, then take one."""
        self._posture.phase = "joining"
        self._posture.reason.set(f"building stage {self.index} of {workshop.config.model.stages}")
        async with open_holding(self._context, workshop, self.index) as holding:
            follower = Follower(self._context, holding, self._posture.reason, workshop.config.plan.copy_seconds)
            try:
                if not self.order.is_seated:
                    self._posture.phase, self.follower = "following", follower
                    await self._follow(follower)
                async with open_seat(self._context, holding, self._posture.reason) as (seat, routes):
                    self.seat, self.routes = seat, routes
                    routes.on_fault = partial(self._on_fault, self.index)
                    await self._sit(holding, follower, seat)
            finally:
                self.follower = self.seat = self.routes = None
                self._posture.ready.clear()

    async def _follow(self, follower: Follower) -> None:
        """Until the stage is to have a seat."""
        stage, events = follower.holding.stage.name, self._context.telemetry.events
        events.record(Kind.FOLLOWING, f"follows {stage}", Subject(stage=stage))
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follower.follow())
            await self._promoted.wait()
            following.cancel()
        events.record(Kind.PROMOTED, f"is to take {stage}, which it {follower.describe()}", Subject(stage=stage))

    async def _sit(self, holding: Holding, follower: Follower, seat: Seat) -> None:
        async with asyncio.TaskGroup() as group:
            arrival = Arrival(
                self._context, holding, follower, seat, self._posture.reason, partial(self._vault.take, seat)
            )
            await arrival.come(group, self.order.heir_of)
            self._posture.phase, seat.phase = "seated", "waiting"
            self._posture.reason.set(f"waiting: no route through {seat.stage.name} yet")
            self._posture.ready.set()
            self._on_sat()
            group.create_task(self._vault.saver(seat, self._verdict).begin())
            await seat.keep()

    async def leave(self) -> None:
        """Finish the step under way, then hand the seat over or share what was learned."""
        seat = self.seat
        if seat is None:
            return
        seat.is_closing = True
        # The client sees this phase and gives the route to others; a trainer that leaves closes it.
        await seat.unrouted.wait()
        if await seat.is_handed_over():
            self._posture.reason.set(f"draining: {seat.stage.name} is handed over")
        else:
            await self.share_progress()

    async def share_progress(self) -> None:
        """Last rounds before the seat is given back, so that the siblings keep what was learned here."""
        seat = self.seat
        if seat is None:
            return
        seat.is_closing = True
        await seat.rounds.landed()
        if seat.has_progress and seat.is_between_steps and siblings(self._context, seat.stage.index):
            if self._posture.phase != "failed":
                # Else why it takes no stage is what people have to know.
                self._posture.reason.set(
                    f"a last round of {seat.stage.name}, so that the siblings keep what was learned"
                )
            await seat.rounds.settle()

    def _verdict(self) -> Verdict:
        """On the last committed step."""
        assert self.routes is not None
        return self.routes.standing.verdict


def announced(endpoint: Endpoint, facts: ExpertStatus, posture: Posture, has_arrived: bool) -> ExpertRecord:
    """What others are told of an expert; `has_arrived`: it holds the numbers with which its seat begins."""
    is_leaving = posture.phase == "draining"
    return ExpertRecord(
        endpoint,
        seated=facts.seated and not is_leaving,
        stage=StageIndex(facts.stage),
        ready=facts.ready and has_arrived and not is_leaving,
        step=facts.step,
        round=facts.round,
        digest=facts.digest,
        pinned=facts.pinned,
        reason=str(posture.reason),
        follows=StageIndex(facts.follows) if facts.follows is not None and not is_leaving else None,
        warm=facts.warm and not is_leaving,
    )
