"""The expert: hosts one stage, or is a spare until it is given one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from distqat.aio import Backoff, supervise
from distqat.config import RunConfig
from distqat.data.claims import LedgerSnapshot
from distqat.discovery.records import ExpertRecord
from distqat.errors import ComputeError, ConfigError, DistqatError, RefusedError, TornError
from distqat.ids import PipelineId, StageIndex
from distqat.model.agreement import Verdict
from distqat.model.device import Device
from distqat.roles.checkpoint.vault import Vault
from distqat.roles.checkpoint.words import Load
from distqat.roles.context import RESTARTS, RoleContext, RoleOptions
from distqat.roles.faults import Faults
from distqat.roles.fencing import NOTHING
from distqat.roles.holding import Workshop, check_model, siblings
from distqat.roles.orders.messages import FenceReply
from distqat.roles.orders.order import SPARE, Order
from distqat.roles.pulse import pulse
from distqat.roles.seat import Seat
from distqat.roles.status import ExpertStatus, RoleStatus
from distqat.roles.tenure import Posture, Tenure, announced
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 0.25

READY_SECONDS = 1.0
"""For which whoever gives a follower a seat waits to hear that it is ready; a newcomer is asked again later."""


@asynccontextmanager
async def open_role(context: RoleContext, options: RoleOptions) -> AsyncIterator[Expert]:
    """Serve as an expert while the role is held."""
    expert = Expert(context, options)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(supervise("expert", expert.work, Backoff(0.5, 10.0), expert.failed, RESTARTS))
        try:
            yield expert
        finally:
            task.cancel()
            expert.withdraw()


class Expert:
    """Holds at most one seat, the one that it was given last."""

    def __init__(self, context: RoleContext, options: RoleOptions) -> None:
        self._context = context
        self._posture = Posture(Reason(log, "waiting: no run is known yet"))
        self._pinned = StageIndex(options.stage) if options.stage is not None else None
        self._order = Order(self._pinned)  # What it is to be.
        self._faults = Faults()
        self._is_torn = False  # The numbers of the stage are of no use: it is built anew.
        self._changed = asyncio.Event()  # Set when that is something else than what it is.
        self._config: RunConfig | None = None  # None until the run is known.
        self._tenure: Tenure | None = None  # None while no stage is held, or about to be.
        self._vault: Vault | None = None  # None until the run is known and its checkpoints are found.

    def __repr__(self) -> str:
        return f"<Expert {self.seat or 'spare'} {self._posture.phase}: {self._posture.reason}>"

    @property
    def seat(self) -> Seat | None:
        """The seat that it has; None while a spare, and while the stage is being built."""
        return self._tenure.seat if self._tenure is not None else None

    def status(self) -> RoleStatus:
        """Phase, reason, and the stage."""
        phase = self.seat.phase if self.seat is not None and self._posture.phase == "seated" else self._posture.phase
        reason = self.seat.reason if self.seat is not None and phase == "averaging" else str(self._posture.reason)
        checkpoints = self._vault.status() if self._vault is not None else None
        return RoleStatus("expert", phase, reason, expert=self._facts(), checkpoints=checkpoints)

    def failed(self, error: BaseException) -> None:
        """The work failed and will be tried again."""
        self._posture.phase = "failed"
        self._posture.reason.set(f"failed: {_why(error)}; trying again", logging.WARNING)

    async def assign(self, order: Order) -> ExpertStatus:
        """Be what is ordered. Raises RefusedError when it is pinned elsewhere or leaving, ConfigError.

        Answers at once, but to a spare that holds a stage and is to take a seat: of that stage it is ready in a moment,
        of another one soon, with what a sibling gives it. The pipeline that waits for it is mended with the answer.
        """
        if self._posture.phase == "draining":
            raise RefusedError("this expert is leaving")
        if self._vault is not None:
            self._vault.forget()
        if self._config is not None and order.stage is not None:
            _check_stage(self._config, order.stage)
        if self._pinned is not None and order.seat != self._pinned:
            raise RefusedError(f"this expert was started for stage {self._pinned} and takes no other")
        left = self._faults.left(asyncio.get_running_loop().time())
        if left and self._pinned is None and order.stage is not None:
            raise RefusedError(f"this expert takes no stage for {left:.0f} s: {self._faults.reason}")
        before, self._order = self._order, order
        if self._tenure is not None and self._tenure.index == order.stage:
            self._tenure.told(order)
        is_another = (order.seat, order.follows) != (before.seat, before.follows)
        if is_another and not order.is_promotion(before):
            self._changed.set()
        if order.seat is not None and (before.follows is not None or order.heir_of is not None):
            with suppress(TimeoutError):
                async with asyncio.timeout(READY_SECONDS):
                    await self._posture.ready.wait()
        return self._facts()

    async def load(self, stage: StageIndex, load: Load) -> ExpertStatus:
        """Hold this stage with what that checkpoint holds of it. Raises RefusedError, ConfigError."""
        if self._vault is None:
            raise RefusedError("this expert does not know its checkpoints yet")
        is_ready = self.seat is not None and self.seat.is_ready
        if is_ready and self._vault.has_loaded(stage, load):
            return self._facts()
        facts = await self.assign(Order(stage))
        self._vault.want(stage, load)
        if is_ready:
            self._changed.set()
        return facts

    def books(self) -> LedgerSnapshot | None:
        """The run's books that lie beside the checkpoints; None: there are none."""
        return self._vault.books() if self._vault is not None else None

    async def fence(self, pipeline: PipelineId, step: int, verdict: Verdict) -> FenceReply:
        """Commit no further step of this pipeline; the last one that was committed here. Raises RefusedError."""
        if self._tenure is None or self._tenure.routes is None:
            return NOTHING
        last = await self._tenure.routes.fence(pipeline, step, verdict)
        return FenceReply(last.step, last.claim, last.verdict)

    async def drain(self) -> None:
        """Finish the step under way, share it with the siblings, and give the seat back."""
        self._posture.phase = "draining"
        self._posture.reason.set("draining: finishing the step under way")
        if self.seat is None or self._tenure is None:
            return
        await self._tenure.leave()
        if self._vault is not None:
            await self._vault.wait_idle()

    def withdraw(self) -> None:
        """Nobody is told of this expert any more."""
        if self._context.directory.run is not None:
            self._context.directory.withdraw(ExpertRecord)

    async def work(self) -> None:
        """Learn the run, then hold the wanted seat, one after the other."""
        context = self._context
        self._config = config = await context.run.wait()
        check_model(context, config)
        if self._order.stage is not None:
            _check_stage(config, self._order.stage)
        self._posture.phase = "joining"
        daemon = context.settings.daemon
        vault = Vault(context, config)
        self._posture.reason.set("looking for checkpoints")
        await vault.open()
        self._vault = vault
        async with (
            Device.open(daemon.device, daemon.threads) as device,
            # Whole vectors of rounds, which lie in the memory of the CPU: beside them the device goes on.
            Device.open("cpu", daemon.threads) as side,
            asyncio.TaskGroup() as group,
        ):
            with context.heartbeat.asking(partial(pulse, device, config.lease.min)):
                group.create_task(self._keep_announcing())
                group.create_task(supervise("checkpoints", vault.work, Backoff(1.0, 10.0)))
                while True:
                    await self._hold(Workshop(config, device, side))

    async def _hold(self, workshop: Workshop) -> None:
        """Be what is ordered now, until that is something else."""
        self._changed.clear()
        self._is_torn = False
        stage = self._order.stage
        if stage is None:
            await self._rest()
            self._posture.phase = "waiting"
            self._posture.reason.set("waiting: a spare, for a stage that needs one")
            await self._changed.wait()
            return
        assert self._vault is not None
        tenure = Tenure(self._context, self._posture, self._vault, self._order, self._announce, self._faulted)
        self._tenure = tenure
        try:
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(tenure.serve(workshop))
                await self._changed.wait()
                if not self._is_torn:
                    await tenure.share_progress()
                serving.cancel()
        finally:
            self._tenure = None

    def _faulted(self, stage: StageIndex, fault: ComputeError) -> None:
        """The stage's own code failed. After too many faults its seat is given back, if another expert holds it too."""
        if isinstance(fault, TornError):
            self._is_torn = True
            self._changed.set()
        now = asyncio.get_running_loop().time()
        is_held_elsewhere = any(sibling.ready for sibling in siblings(self._context, stage))
        if self._faults.add(fault.reason, now) and is_held_elsewhere and self._pinned is None:
            seconds = self._faults.rest(now)
            log.warning("gives stage %d back, and takes none for %.0f s: %s", stage, seconds, fault.reason)
            self._order = SPARE
            # Shown at once, not only when the seat is closed: till then the client would give the stage back to it.
            self._posture.phase = "failed"
            self._posture.reason.set(f"takes no stage for {seconds:.0f} s: {fault.reason}")
            self._changed.set()

    async def _rest(self) -> None:
        """After too many faults nothing is taken for a while; the client sees this phase, and leaves it in peace."""
        left = self._faults.left(asyncio.get_running_loop().time())
        if left:
            self._posture.phase = "failed"
            self._posture.reason.set(f"takes no stage for {left:.0f} s: {self._faults.reason}")
            await asyncio.sleep(left)

    async def _keep_announcing(self) -> None:
        while True:
            self._announce()
            await asyncio.sleep(ANNOUNCE_SECONDS)

    def _facts(self) -> ExpertStatus:
        now = asyncio.get_running_loop().time()
        order = self._order
        if order.follows is not None:
            follower = self._tenure.follower if self._tenure is not None else None
            is_warm = follower is not None and follower.is_warm
            return self._with_pin(ExpertStatus(follows=order.follows, warm=is_warm))
        if self.seat is not None and self.seat.stage.index == order.seat:
            return self._with_pin(self.seat.status(now))
        # A stage that is being built counts as taken, or the client would give it to others too; and the stage that
        # is left for it as gone, or the client would route through it.
        return self._with_pin(ExpertStatus(seated=order.seat is not None, stage=order.seat or 0))

    def _with_pin(self, facts: ExpertStatus) -> ExpertStatus:
        transport = self._context.transport
        uplink, downlink = transport.uplink(), transport.downlink()
        return replace(facts, pinned=self._pinned is not None, uplink=uplink, downlink=downlink)

    def _announce(self) -> None:
        if self._config is None or self._context.directory.run is None:
            return
        # Until its numbers are handed over an heir takes no part in rounds: whoever hands over waits for their end.
        has_arrived = self.seat is not None and self.seat.arrived.is_set()
        record = announced(self._context.endpoint, self._facts(), self._posture, has_arrived)
        self._context.directory.announce(record)


def _check_stage(config: RunConfig, stage: StageIndex) -> None:
    if not 0 <= stage < config.model.stages:
        raise ConfigError(f"stage {stage} is out of range: run {config.id} has stages 0 to {config.model.stages - 1}")


def _why(error: BaseException) -> str:
    return error.reason if isinstance(error, DistqatError) else str(error)
