"""A stage, held: its tensors, its rounds with the siblings, and the routes that run through it.

The host of flow A and the owner of flow B at once: here, and only here, a committed step may turn into a round.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

from distqat.aio import Backoff, supervise
from distqat.averaging.averager import Averager
from distqat.config import RunConfig
from distqat.errors import RefusedError, StaleError
from distqat.ids import PipelineId, StepRef, short
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.pipeline.messages import Open
from distqat.roles.context import RoleContext
from distqat.roles.copies.copy import Carried, Copy
from distqat.roles.journal import Journal, told
from distqat.roles.rounds import Rounds
from distqat.roles.status import ExpertStatus, StepTimes
from distqat.telemetry import Rate, Reason

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.1
"""An invited stage that has been between two steps for so long joins the round without waiting for the next step."""

MOST_IDLE_SECONDS = 5.0
"""For no longer than this a stage in a route is waited for because its steps take long."""

STRIDES = 2
"""From step to step, of which the shorter says how long steps take."""

HELD_UP_SECONDS = 0.5
"""Without any work in the middle of a step, after which siblings are told that nobody knows when it ends."""

HELD_UP_STRIDES = 3
"""From step to step, for which nothing has to come either."""

SHOWN_RECEIPTS = 8


class Seat:
    """One stage of the run at this expert; the `Host` of its routes."""

    def __init__(
        self,
        context: RoleContext,
        config: RunConfig,
        stage: Stage,
        device: Device,
        averager: Averager,
        journal: Journal,
        reason: Reason,
    ) -> None:
        self.stage = stage
        self.device = device
        self.averager = averager
        self._phase = "joining"  # As far as routes tell; `phase` tells of rounds too.
        self.is_closing = False  # True when the seat is about to be given back: no further route may open.
        self.unrouted = asyncio.Event()  # Set while no route runs through here.
        self.unrouted.set()
        self._context = context
        self._config = config
        self._journal = journal
        self._reason = reason
        self._route: Open | None = None  # How the route that runs through here was opened; None between routes.
        self.pipeline: PipelineId | None = None  # That of the last route; None before the first.
        self.rounds = Rounds(stage, device, averager, journal, self._is_idle)
        self._quiet_since = 0.0  # When work was last delivered.
        self._began = 0.0  # When the first forward of the last step came.
        self._stepped: float | None = None  # When the step before was done, its round too; None: it was of no route.
        self._strides: deque[float] = deque(maxlen=STRIDES)  # Seconds from one step to the next that followed it.
        self._step_seconds = 0.0  # Of the last step, from its first forward on.
        self._is_in_step = False  # A training forward has begun, and its step is not committed.
        self._rate = Rate()
        self.arrived = asyncio.Event()  # Cleared while the stage does not hold the numbers yet that it begins with.
        self.arrived.set()
        averager.is_held_up = self._is_held_up
        self.is_told: Callable[[], bool] = lambda: True  # Whether all steps that are in the stage are counted here.
        self._bequest: asyncio.Future[bool] | None = None  # Whether the heir has it all; None while nobody is heir.

    def __repr__(self) -> str:
        return f"<Seat {self.stage!r} {self.phase}: {self._reason}>"

    @property
    def phase(self) -> str:
        """What the seat does."""
        return self._phase if self.rounds.gate.is_set() else "averaging"

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase

    @property
    def reason(self) -> str:
        """Why: that of the round for which training waits, else what was said of the routes."""
        return str(self._reason if self.rounds.gate.is_set() else self.rounds.describe())

    @property
    def is_ready(self) -> bool:
        """Whether the stage's state is complete."""
        return self.averager.outer is not None

    @property
    def has_progress(self) -> bool:
        """Whether something was learned here that is in no committed round."""
        return self.is_ready and self.rounds.has_progress

    @property
    def is_between_steps(self) -> bool:
        """Whether nothing of a step is begun and not committed."""
        held = self.stage.statistics()
        return not self._is_in_step and not held.stashed_microbatches and not held.pending_microbatches

    def status(self, now: float) -> ExpertStatus:
        """Facts for people."""
        outer = self.averager.outer
        receipts = list(self.averager.receipts)[-SHOWN_RECEIPTS:]
        return ExpertStatus(
            seated=True,
            stage=self.stage.index,
            stage_name=self.stage.name,
            pipeline=self._route.pipeline if self._route is not None else "",
            step=self.stage.version,
            round=outer.round if outer is not None else 0,
            digest=outer.digest if outer is not None else "",
            samples_per_second=self._rate.value(now),
            parameters=self.stage.num_parameters,
            receipts=tuple(told(receipt) for receipt in receipts),
            ready=self.is_ready,
            times=StepTimes.of(self._journal.timeline) if self._journal.timeline is not None else None,
            beside=self.rounds.is_beside,
            replayed=self.rounds.handover.replayed,
        )

    # What flow A asks of its host.

    async def opened(self, opening: Open) -> None:
        """A route wants this stage. Raises RefusedError while there is nothing to train."""
        if not self.is_ready:
            raise RefusedError(f"stage {self.stage.index} on {short(self._context.me)} is not ready: {self._reason}")
        if self.is_closing:
            raise RefusedError(f"{short(self._context.me)} gives stage {self.stage.index} back")
        # The expert that hands it over has been left by its route, or will soon be.
        await self.arrived.wait()
        self._route, self.pipeline = opening, PipelineId(opening.pipeline)
        self._journal.timeline = self._context.telemetry.timelines.of(
            opening.pipeline, self.stage.name, self.stage.index
        )
        self._journal.opened(opening)
        self.unrouted.clear()
        self.phase = "training"
        self._reason.set(f"training {self.stage.name} in pipeline {opening.pipeline}")

    async def begin(self, train: bool) -> None:
        """A forward comes next; waits while numbers go out of the stage or come in."""
        await self.rounds.opened()
        if train and not self._is_in_step:
            self._is_in_step, self._began = True, asyncio.get_running_loop().time()

    def orders_round(self, ordered: bool | None) -> bool:
        """Whether a round follows the step that was just applied."""
        return self.rounds.orders_round(ordered)

    async def committed(self, at: StepRef, samples: int) -> None:
        """That step is applied; what is due of a round follows."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._step_seconds = now - self._began
        if self._stepped is not None:
            self._strides.append(now - self._stepped)
        self._is_in_step, self._stepped = False, None
        self.rounds.count(samples, at)
        self._rate.add(samples, now)
        await self.rounds.boundary()
        self._stepped = loop.time()

    # What spares and heirs ask of it.

    async def copy(self) -> Copy:
        """What the stage holds after the last step. Raises StaleError while what is committed is not in it yet, and if
        a step came in between; ask again then."""
        outer = self.averager.outer
        if outer is None or not self.arrived.is_set() or not self.rounds.is_current:
            raise StaleError(f"{self.stage.name} has no copy to give: {self._reason}")
        counted = self._counted()
        # In one piece of work: a step that the device applied before may be told of only later.
        state, is_told = await self.device.run(lambda: (self.stage.local_state(), self.is_told()))
        if not is_told or counted != self._counted() or self.averager.outer is not outer:
            raise StaleError(f"{self.stage.name} has committed a step while it was copied")
        return Copy(state, outer.digest, *counted)

    def _counted(self) -> tuple[tuple[int, ...], int, tuple[StepRef, ...], bool]:
        """What the values of the stage stand for: samples by fragment, steps since a round, the last step of each
        pipeline, and whether a round comes before the next."""
        handover = self.rounds.handover
        origins = tuple(StepRef(pipeline, step) for pipeline, step in sorted(handover.origins.items()))
        return tuple(handover.samples.values()), self.rounds.steps, origins, self.rounds.is_ordered

    @asynccontextmanager
    async def handing_over(self) -> AsyncIterator[Callable[[], Awaitable[Copy]]]:
        """Within, the asker is the heir; what it is given waits for the end of the route and makes the last copy, after
        which nothing moves the stage any more. Raises RefusedError unless the expert is leaving and has no heir yet."""
        if not self.is_closing or self._bequest is not None:
            raise RefusedError(f"{short(self._context.me)} does not hand {self.stage.name} over now")
        bequest = self._bequest = asyncio.get_running_loop().create_future()
        is_given = False
        try:
            async with AsyncExitStack() as stack:
                yield partial(self._last_copy, stack)
            is_given = True
        finally:
            self._bequest = None if not is_given else bequest
            bequest.set_result(is_given)

    async def is_handed_over(self) -> bool:
        """Whether an heir goes on with all that was learned here; waits until one that has asked has it."""
        return self._bequest is not None and await self._bequest

    async def _last_copy(self, stack: AsyncExitStack) -> Copy:
        await self.unrouted.wait()
        await stack.enter_async_context(self.rounds.frozen())
        await self.device.run(self.stage.drop_pending)
        handover, feedback = self.rounds.handover, self.averager.committed.feedback
        carried = Carried(feedback.save(), handover.momenta(), handover.last_share)
        return replace(await self.copy(), carried=carried)

    async def settle(self) -> None:
        """The trainer wants the siblings to agree now."""
        await self.rounds.settle()

    def progressed(self) -> None:
        """Work was delivered."""
        self._quiet_since = asyncio.get_running_loop().time()

    async def closed(self, reason: str) -> None:
        """The route is gone; the stage keeps what it holds, and waits for the next one."""
        self._route = self._journal.timeline = self._stepped = None
        self._journal.closed(reason)
        self.unrouted.set()
        self._is_in_step = False
        self._quiet_since = asyncio.get_running_loop().time()
        self.phase = "waiting"
        self._reason.set(f"waiting: no route through {self.stage.name} ({reason})")

    # What the expert asks of it.

    async def keep(self) -> None:
        """Take rounds, and join those of the siblings while this stage has no work of its own; never returns."""
        async with asyncio.TaskGroup() as group:
            name = f"rounds of {self.stage.name}"
            group.create_task(supervise(name, self.rounds.work, Backoff(0.5, 10.0)), name=name)
            await self._keep_company()

    async def _keep_company(self) -> None:
        while True:
            await self.averager.wait_invited()
            if self.unrouted.is_set() and self._quiet_seconds > self._config.lease.min and not self.is_between_steps:
                log.info("%s: nobody came back for the step that a broken route left open", self.stage.name)
                await self.device.run(self.stage.drop_pending)
            if self.rounds.is_beside or not self._is_at_rest() or not self.averager.invited:
                await asyncio.sleep(IDLE_SECONDS / 4)
                continue
            await self.rounds.attend()
            await asyncio.sleep(0)  # Steps that have waited for the end of the round go before the next one.

    def _is_idle(self, seconds: float = IDLE_SECONDS) -> bool:
        return self._quiet_seconds >= seconds and self.is_between_steps and self.arrived.is_set()

    def _is_at_rest(self) -> bool:
        """Whether no step is coming. One that has begun in the other stages may take as long as the last to get here,
        and who joins a round before it while they join after it commits other steps than they do."""
        is_routed = not self.unrouted.is_set() and not self.rounds.is_owing
        # A pause between two steps makes one stride long, and not the next.
        seconds = min(self._strides, default=self._step_seconds) if is_routed else 0.0
        return self._is_idle(max(IDLE_SECONDS, min(2 * seconds, MOST_IDLE_SECONDS)))

    def _is_held_up(self) -> bool:
        """Whether the step that is expected here stands still, as when another stage of its route is lost. How long one
        takes is not known before there were some."""
        is_slow = not self._strides or self._is_at_rest() or not self.rounds.gate.is_set()
        return not is_slow and self._quiet_seconds >= max(HELD_UP_SECONDS, HELD_UP_STRIDES * max(self._strides))

    @property
    def _quiet_seconds(self) -> float:
        return asyncio.get_running_loop().time() - self._quiet_since
