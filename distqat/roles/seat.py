"""A stage, held: its tensors, its rounds with the siblings, and the routes that run through it.

The host of flow A and the owner of flow B at once: here, and only here, a committed step may turn into a round.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from functools import partial

import torch

from distqat.averaging.averager import Averager
from distqat.averaging.committed import Receipt as RoundReceipt
from distqat.config import RunConfig
from distqat.errors import RefusedError, RoundError
from distqat.ids import short
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.pipeline.messages import Open
from distqat.roles.context import RoleContext
from distqat.roles.status import ExpertStatus, Receipt, StepTimes
from distqat.telemetry import Rate, Reason
from distqat.timeline import ROUND, Timeline

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.1
"""An invited stage that has been between two steps for so long joins the round without waiting for the next step."""

SHOWN_RECEIPTS = 8


class Seat:
    """One stage of the run at this expert; the `Host` of its routes."""

    def __init__(
        self, context: RoleContext, config: RunConfig, stage: Stage, device: Device, averager: Averager, reason: Reason
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
        self._reason = reason
        self._route: Open | None = None  # How the route that runs through here was opened; None between routes.
        self._timeline: Timeline | None = None  # That of the present route; None between routes.
        self._steps = 0  # Committed since the last round.
        self._samples = 0  # What local values stand for beyond the anchor; weighs the pseudo-gradient.
        self._quiet_since = 0.0  # When work was last delivered.
        self._is_in_step = False  # A training forward has begun, and its step is not committed.
        self._turn = asyncio.Lock()  # Held during a round: no step begins, and no other round.
        self._agreed: torch.Tensor | None = None  # What a round came to and the stage does not hold yet; else None.
        self._is_averaging = False
        self._rate = Rate()

    def __repr__(self) -> str:
        return f"<Seat {self.stage!r} {self.phase}: {self._reason}>"

    @property
    def phase(self) -> str:
        """What the seat does."""
        return "averaging" if self._is_averaging else self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase

    @property
    def is_ready(self) -> bool:
        """Whether the stage's state is complete."""
        return self.averager.outer is not None

    @property
    def has_progress(self) -> bool:
        """Whether something was learned here that is in no committed round."""
        return self.is_ready and self._samples > 0

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
            receipts=tuple(
                Receipt(r.round, r.contributors, r.samples, r.bytes, r.seconds, r.digest, r.lost) for r in receipts
            ),
            ready=self.is_ready,
            times=StepTimes.of(self._timeline) if self._timeline is not None else None,
        )

    # What flow A asks of its host.

    async def opened(self, opening: Open) -> None:
        """A route wants this stage. Raises RefusedError while there is nothing to train."""
        if not self.is_ready:
            raise RefusedError(f"stage {self.stage.index} on {short(self._context.me)} is not ready: {self._reason}")
        if self.is_closing:
            raise RefusedError(f"{short(self._context.me)} gives stage {self.stage.index} back")
        self._route = opening
        self._timeline = self._context.telemetry.timelines.of(opening.pipeline, self.stage.name, self.stage.index)
        self.unrouted.clear()
        self.phase = "training"
        self._reason.set(f"training {self.stage.name} in pipeline {opening.pipeline}")

    async def begin(self, train: bool) -> None:
        """A forward comes next; waits while a round is under way."""
        async with self._turn:
            await self._load()
            self._is_in_step |= train

    async def committed(self, step: int, samples: int) -> None:
        """A step is applied; a round follows if one is due or a sibling waits for it."""
        self._is_in_step = False
        self._steps += 1
        self._samples += samples
        self._rate.add(samples, asyncio.get_running_loop().time())
        if self.averager.is_due(self._steps):
            await self.synchronise()

    async def settle(self) -> None:
        """The trainer wants the siblings to agree now."""
        await self.synchronise()

    def progressed(self) -> None:
        """Work was delivered."""
        self._quiet_since = asyncio.get_running_loop().time()

    async def closed(self, reason: str) -> None:
        """The route is gone; the stage keeps what it holds, and waits for the next one."""
        self._route = self._timeline = None
        self.unrouted.set()
        self._is_in_step = False
        self._quiet_since = asyncio.get_running_loop().time()
        self.phase = "waiting"
        self._reason.set(f"waiting: no route through {self.stage.name} ({reason})")

    # Rounds.

    async def synchronise(self) -> None:
        """One outer round with the siblings; if it fails, the local progress waits for the next one."""
        async with self._turn:
            with self._timeline.span(ROUND) if self._timeline is not None else nullcontext():
                await self._try_round()

    async def _try_round(self) -> None:
        self._is_averaging = True
        try:
            await self._round()
            self._steps = 0
        except RoundError as error:
            # Counted anew: the next round is tried after as many steps, not after each.
            self._steps = 0
            log.warning("%s: %s; the local progress is kept", self.stage.name, error)
            self._context.telemetry.record("failed round", {"stage": self.stage.name, "reason": error.reason}, {})
        finally:
            self._is_averaging = False

    async def _round(self) -> None:
        await self._load()
        samples, before = self._samples, self._last_receipt()
        local = await self.device.run(self.stage.flatten)
        self._agreed = await self.averager.synchronise(local, samples)
        self._samples = 0
        await self._load()
        self.progressed()
        receipt = self._last_receipt()
        # Without samples there was no round, and after catching up none of its own.
        if receipt is not None and receipt is not before:
            self._record(receipt)

    def _last_receipt(self) -> RoundReceipt | None:
        return self.averager.receipts[-1] if self.averager.receipts else None

    def _record(self, receipt: RoundReceipt) -> None:
        labels = {"stage": self.stage.name, "digest": receipt.digest}
        values: dict[str, float] = {
            "round": receipt.round,
            "contributors": len(receipt.contributors),
            "samples": receipt.samples,
        }
        values |= {"bytes": receipt.bytes, "seconds": receipt.seconds, "lost": len(receipt.lost)}
        self._context.telemetry.record("round", labels, values)

    async def _load(self) -> None:
        """Bring what was agreed on into the stage, also after a cancellation that left it out: else the next
        pseudo-gradient would take the round back."""
        if self._agreed is not None:
            await self.device.run(partial(self.stage.load_flat, self._agreed))
            self._agreed = None

    async def keep_company(self) -> None:
        """Join the rounds of the siblings while this stage has no work of its own."""
        loop = asyncio.get_running_loop()
        while True:
            await self.averager.wait_invited()
            quiet = loop.time() - self._quiet_since
            if self.unrouted.is_set() and quiet > self._config.lease.min and not self.is_between_steps:
                log.info("%s: nobody came back for the step that a broken route left open", self.stage.name)
                await self.device.run(self.stage.drop_pending)
            if quiet < IDLE_SECONDS or self._turn.locked() or not self.is_between_steps or not self.averager.invited:
                await asyncio.sleep(IDLE_SECONDS / 4)
                continue
            await self.synchronise()
