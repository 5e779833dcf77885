"""How the numbers of a stage come into a seat that was just taken: handed over, held warm, or as a newcomer's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from distqat.averaging.context import Sibling
from distqat.errors import DistqatError, StateError
from distqat.events import Kind, Subject
from distqat.ids import PeerId, short
from distqat.roles.context import RoleContext
from distqat.roles.copies.copy import Copy, Layout
from distqat.roles.copies.taking import inherit
from distqat.roles.follower import Follower
from distqat.roles.holding import Holding
from distqat.roles.newcomer import Newcomer
from distqat.roles.seat import Seat
from distqat.telemetry import Reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """Brings a seat its numbers."""

    context: RoleContext
    holding: Holding
    follower: Follower
    seat: Seat
    reason: Reason
    load: Callable[[], Awaitable[int | None]]
    """See `Newcomer`."""

    async def come(self, group: asyncio.TaskGroup, heir_of: PeerId | None) -> None:
        """Returns when routes may be opened. What is handed over comes when the last route has left who hands it over;
        the first route here waits for that, and nobody gets a copy before."""
        self.seat.arrived.clear()
        if heir_of is not None and await self._is_accepted(group, heir_of):
            return
        if not await self._use_what_is_held():
            await Newcomer(
                self.context,
                self.holding.stage,
                self.holding.workshop.device,
                self.holding.averager,
                self.holding.circle.siblings,
                self.reason,
                self.load,
            ).get_state()
        self.seat.arrived.set()

    async def _is_accepted(self, group: asyncio.TaskGroup, heir_of: PeerId) -> bool:
        """Whether that expert hands its seat over to this one."""
        donor = self._find(heir_of)
        if donor is None:
            return False
        accepted = asyncio.Event()
        work = group.create_task(self._inherit(donor, accepted), name=f"inheriting {self.holding.stage.name}")
        waiting = group.create_task(accepted.wait())
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return accepted.is_set()

    async def _inherit(self, donor: Sibling, accepted: asyncio.Event) -> None:
        """Take over what the donor held in the end; whatever goes wrong, what is held here has to do."""
        try:
            await self.follower.look(donor)
            patience = self.context.settings.daemon.drain_timeout
            layout = await self._layout()
            async with inherit(self.holding.circle, layout, donor, accepted, patience) as copy:
                await self.follower.look(donor)
                if self.follower.outer is None or copy.digest != self.follower.outer.digest:
                    raise StateError(f"{short(donor.peer)} hands over what began at another state than it holds")
                await self._restore(copy, "handed over", donor.peer)
                carried, rounds = copy.carried, self.seat.rounds
                rounds.resume(copy.samples, copy.steps, copy.is_ordered)
                self.holding.averager.committed.feedback.load(carried.residuals)
                rounds.handover.resume(carried.momenta, carried.share)
        except DistqatError as error:
            log.warning("%s was not handed over by %s: %s", self.holding.stage.name, short(donor.peer), error)
            if accepted.is_set():
                self._forget()
                await self._use_what_is_held()
        finally:
            if accepted.is_set():
                self.seat.arrived.set()

    def _forget(self) -> None:
        """Nothing that belongs to the donor's numbers goes with others."""
        rounds = self.seat.rounds
        rounds.resume([0] * len(self.holding.stage.fragments), 0)
        rounds.handover.origins = {}
        rounds.handover.resume({}, 0.0)
        self.holding.averager.committed.feedback.load({})

    async def _use_what_is_held(self) -> bool:
        """Put what a follower holds into the stage; False if that is nothing to begin with."""
        outer, copy, stage = self.follower.outer, self.follower.copy, self.holding.stage
        if outer is None or not self.follower.is_founded:
            return False
        if copy is not None and copy.digest == outer.digest:
            donor = self.follower.copied_from
            await self._restore(copy, "copy", donor)
            if any(sibling.peer == donor for sibling in self.holding.circle.siblings()):
                # Whoever learned this lives, and contributes it: here it weighs nothing.
                self.seat.rounds.resume([0] * len(copy.samples), 0)
                self.seat.rounds.handover.origins = {}
            return True
        device = self.holding.workshop.device
        if copy is not None:
            # Its values are from before a round; what the optimizer remembers is as good as ever.
            await device.run(partial(stage.restore, copy.state))
        await device.run(partial(stage.scatter, range(len(outer.parts)), outer.anchor))
        self._tell("warm", f"{stage.name}: holds the state of round {outer.round} already", outer.round)
        return True

    async def _restore(self, copy: Copy, how: str, donor: PeerId | None = None) -> None:
        stage, outer = self.holding.stage, self.follower.outer
        await self.holding.workshop.device.run(partial(stage.restore, copy.state))
        self.seat.rounds.resume(copy.samples, copy.steps)
        self.seat.rounds.handover.origins = {origin.pipeline: origin.step for origin in copy.origins}
        whose = f" of {short(donor)}" if donor is not None else ""
        number = outer.round if outer is not None else 0
        self._tell(how, f"{stage.name}: goes on from step {copy.state.version}{whose}", number)

    async def _layout(self) -> Layout:
        state = await self.holding.workshop.device.run(self.holding.stage.local_state)
        return Layout(state.tensors)

    def _find(self, peer: PeerId) -> Sibling | None:
        """Its own record may say already that it has no seat any more."""
        entry = self.context.directory.snapshot().experts.get(peer)
        if entry is None:
            return None
        record = entry.record
        return Sibling(peer, record.endpoint, record.round, record.digest, True)

    def _tell(self, how: str, text: str, number: int) -> None:
        subject = Subject(stage=self.holding.stage.name, how=how, round=number, seconds=0.0, bytes=0)
        self.context.telemetry.events.record(Kind.STATE_OBTAINED, text, subject)
