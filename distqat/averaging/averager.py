"""The object that the expert role owns: the outer state of its stage, and one committed round when it asks for it.

Knows nothing of models and optimizers: flat vectors go in, flat vectors come out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch

from distqat.averaging import calls, catchup, terms
from distqat.averaging.committed import Committed, Receipt
from distqat.averaging.context import Context, Sibling
from distqat.averaging.contribution import Contribution
from distqat.averaging.effort import Effort
from distqat.averaging.group import Contact, Join, Rates, Stale
from distqat.averaging.outer import OuterState
from distqat.averaging.phases import Phase
from distqat.averaging.pursuit import Pursuit
from distqat.averaging.state.donor import Donor
from distqat.averaging.vigil import keep_vigil
from distqat.errors import DistqatError, RoundError, StateError, TensorError
from distqat.ids import StepRef, short
from distqat.rpc.handlers import task_group
from distqat.telemetry import Reason

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one call of `synchronise`."""

    before: OuterState
    """To which the local values belonged."""
    state: OuterState
    """That is committed now."""
    how: Phase
    """Of the round that the local values were for."""
    receipt: Receipt | None
    """Of that round; None when there was none (nobody had trained), or when this sibling has caught up instead."""
    is_replayed: bool = False
    """Whether it has caught up by replaying the rounds it missed: local progress may be carried over then."""


class Averager:
    """One stage's outer rounds at one sibling. Only `open` makes one."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.reason = Reason(log, "waiting: no committed state yet")
        self.committed = Committed(context)
        self.pursuit = Pursuit(context, self.committed, self.reason)
        self.donor = Donor(context, self.committed)
        self.is_held_up: Callable[[], bool] = lambda: False  # Whether a step has begun here and does not come on.
        self._is_busy = False  # A call of `synchronise` is under way.
        self._given: OuterState | None = None  # What the owner was last given; its local values begin there.

    def __repr__(self) -> str:
        return f"<Averager stage {self.context.stage} {self.outer or 'without state'}: {self.reason}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, context: Context) -> AsyncIterator[Self]:
        """An averager; who waits at it is sent away at the end. Serve `service.services` of it meanwhile."""
        averager = cls(context)
        try:
            async with task_group() as group:
                watching = group.create_task(keep_vigil(averager.pursuit))
                try:
                    yield averager
                finally:
                    watching.cancel()
        finally:
            averager.pursuit.stop(f"{short(context.me)} leaves stage {context.stage}")
            averager.donor.close()
            await averager.say_farewell()

    @property
    def outer(self) -> OuterState | None:
        """What is committed; None until founded or caught up."""
        return self.committed.outer

    @property
    def phase(self) -> Phase | None:
        """How the next round is taken; None while nothing is committed."""
        return self.context.phase(self.outer.round) if self.outer is not None else None

    @property
    def receipts(self) -> deque[Receipt]:
        """Of the latest rounds committed here, oldest first."""
        return self.committed.receipts

    @property
    def invited(self) -> bool:
        """Whether a sibling waits for this one: synchronise at the next step boundary, or now if idle."""
        return self.outer is not None and self.pursuit.invited.is_set()

    async def wait_invited(self) -> None:
        """Until a sibling waits for this one."""
        await self.pursuit.invited.wait()

    def is_due(self, steps: int) -> bool:
        """Whether to synchronise after so many steps since the round before: they are done, or it is invited."""
        how = self.phase
        return how is not None and (self.invited or steps >= how.steps)

    async def found(self, local: torch.Tensor) -> OuterState:
        """Begin from fresh numbers of all fragments; only for a run that has never committed a round."""
        self._check(local, self.context.num_elements)
        state = await self.context.work(lambda: OuterState.founding(local, self.context.shapes))
        return self._adopt(state)

    async def catch_up(self, donors: Sequence[Sibling]) -> OuterState:
        """Take the committed state of a donor; the most advanced is asked first. Raises StateError."""
        if self._is_busy:
            raise RoundError("a round is under way, which catches up by itself")
        self.reason.set(f"catching up with stage {self.context.stage}")
        try:
            state = await catchup.fetch(self.context, donors)
            self._meet(donors)
            return self._adopt(state)
        except StateError as error:
            self.reason.set(f"waiting: {error.reason}")
            raise

    def resume(self, state: OuterState, residuals: Mapping[int, torch.Tensor]) -> OuterState:
        """Go on from what a checkpoint holds: its state, and what lossy codecs still owe it."""
        if self._is_busy:
            raise RoundError("a round is under way")
        self._adopt(state)
        self.committed.feedback.load(residuals)
        return state

    async def keep_up(self, offer: Stale) -> OuterState:
        """Move on to what a sibling offers, or beyond, without a part in any round. Raises StateError."""
        if self._is_busy:
            raise RoundError("a round is under way, which catches up by itself")
        caught = await catchup.advance(self.context, self.pursuit.outer, offer)
        self._meet(self.context.siblings())
        self.committed.keep(caught.rounds)
        return self._adopt(caught.state)

    async def synchronise(self, local: torch.Tensor, samples: int, origins: tuple[StepRef, ...] = ()) -> Outcome:
        """Commit one outer round with these local values of the fragments of `phase`, one behind the other.

        `samples` is what they stand for since the round before, and `origins` up to which step of which pipeline; with
        zero this sibling only receives. A sibling that
        turns out to have missed rounds takes what they committed instead; whether its progress may be carried over, the
        outcome says. When nobody has trained since the round before, there is no round and the anchor stands. Raises
        RoundError after a bounded time; then nothing has changed, and the progress grows into the next round. Raises
        TensorError for a vector that does not fit.
        """
        before, receipt = self.pursuit.outer, self._last_receipt()
        if self._is_busy:
            raise RoundError("a round is under way already")
        how = self.context.phase(before.round)
        self._check(local, self.context.elements(how))
        if self._given is not before:
            # A call that was cancelled has moved the anchor: what was learned from the one before cannot be told apart.
            samples = 0
        self._is_busy = True
        effort = Effort(None, asyncio.get_running_loop().time())
        try:
            join = await self._contribute(effort, before, local, samples)
            join = replace(join, origins=origins if join.samples else ())
            await self._pursue(effort, join)
        except RoundError as error:
            if self.pursuit.outer is before:
                raise
            log.warning("%s; the state that was caught up with counts", error)
        finally:
            self._is_busy = False
            self._settle()
        own = self._last_receipt()
        state = self._give(self.pursuit.outer)
        return Outcome(before, state, how, own if own is not receipt else None, effort.is_replayed)

    async def say_farewell(self) -> None:
        """Tell the siblings, as far as they can be reached, that they need not wait for this one."""
        if self.outer is None:
            return
        async with asyncio.TaskGroup() as group:
            for sibling in self.context.ready().values():
                group.create_task(self._part(Contact(sibling.peer, sibling.endpoint)))

    async def _part(self, sibling: Contact) -> None:
        try:
            async with asyncio.timeout(calls.LEAVE_SECONDS):
                await calls.leave(self.context, sibling)
        except (TimeoutError, DistqatError) as error:
            log.debug("%s does not hear that this one leaves: %s", short(sibling.peer), error)

    async def _contribute(self, effort: Effort, state: OuterState, local: torch.Tensor, samples: int) -> Join:
        """Work out what this sibling contributes, and what it says of it. What is not finite it keeps to itself."""
        context, how = self.context, self.context.phase(state.round)
        elements = context.elements(how)
        codec = terms.wanted(context.sync, elements, context.transport.uplink(), self._seconds_between)
        if samples:
            work = partial(Contribution.of, state, local, how, self.committed.feedback)
            try:
                effort.contribution = await context.work(work)
            except TensorError as error:
                log.warning("%s is taken without a contribution: %s", context.round(state.round), error)
                context.on_refused(context.me, error.reason)
        contribution = effort.contribution
        return Join(
            round=context.round(state.round),
            peer=context.me,
            endpoint=context.endpoint,
            samples=samples if contribution is not None else 0,
            digest=state.digest,
            elements=elements,
            norm=contribution.norm if contribution is not None else 0.0,
            rates=Rates(context.transport.uplink(), context.transport.downlink()),
            codec=codec,
        )

    @property
    def _seconds_between(self) -> float:
        """From the round before to this one; 0 if there was none."""
        since = self.committed.since
        return asyncio.get_running_loop().time() - since if since else 0.0

    async def _pursue(self, effort: Effort, join: Join) -> None:
        seconds = self.context.waits.total
        try:
            async with asyncio.timeout(seconds):
                await self.pursuit.pursue(effort, join)
        except TimeoutError:
            raise RoundError(f"{join.round} was given up after {seconds:g} s; last: {self.reason}") from None

    def _meet(self, siblings: Sequence[Sibling]) -> None:
        """Where they answer: those who committed the last round may be lost to the directory before the next one, and
        who cannot be asked whether they are gone has to wait for them."""
        self.pursuit.round.company.meet(Contact(sibling.peer, sibling.endpoint) for sibling in siblings)

    def _adopt(self, state: OuterState) -> OuterState:
        self.committed.adopt(state)
        self._settle()
        return self._give(state)

    def _give(self, state: OuterState) -> OuterState:
        self._given = state
        return state

    def _settle(self) -> None:
        state = self.pursuit.outer
        self.reason.set(f"stage {self.context.stage}: {state.round} rounds committed", logging.DEBUG)

    def _last_receipt(self) -> Receipt | None:
        return self.receipts[-1] if self.receipts else None

    def _check(self, local: torch.Tensor, elements: int) -> None:
        expected = (elements,)
        if tuple(local.shape) != expected or local.dtype != torch.float32 or local.device.type != "cpu":
            raise TensorError(
                f"local values must be float32 {expected} on the CPU, "
                f"got {str(local.dtype).removeprefix('torch.')} {tuple(local.shape)} on {local.device}"
            )
