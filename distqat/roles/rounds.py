"""The outer rounds of a seat: when one is due, and when steps have to wait for it.

A round takes its numbers from the stage between two steps, and gives numbers back between two steps. `gate` is shut
meanwhile, and no step begins. With `sync.overlap` steps go on in between:

    steps    6   7 |      | 8   9 |       | 10 ...         overlap: 2
    gate     open  | shut | open  | shut  | open
    round          begin  > synchronise   > merge

The stage that comes first on a route says after which steps a round begins, and the others of its pipeline follow
(`orders_round`): so all stages come to a round at the same steps, and what is committed in them fits together.

One task (`work`) takes the rounds, one at a time and each to its end, whatever becomes of the routes. Its callers only
ask, and wait until the gate is open; a caller that is cancelled takes nothing along.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial

from distqat.averaging.averager import Averager
from distqat.errors import DistqatError
from distqat.ids import StepRef
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.roles.flight import Flight, Handover, is_own
from distqat.roles.journal import Journal

LOOK_SECONDS = 0.025
"""Between two looks whether a stage without steps may take a result over."""

UNHEEDED = 3
"""Steps after which a stage joins a sibling that has invited it although the first stage of its pipeline does not."""


class Rounds:
    """Takes the rounds of one stage; `work` is to run for as long as the stage is held."""

    def __init__(
        self, stage: Stage, device: Device, averager: Averager, journal: Journal, is_idle: Callable[[], bool]
    ) -> None:
        self.gate = asyncio.Event()  # Set while steps may go on.
        self.gate.set()
        self.handover = Handover(stage, averager)
        self._device = device
        self._averager = averager
        self._journal = journal
        self._is_first = stage.index == 0  # It decides for its pipeline.
        self._is_idle = is_idle  # Whether the stage is between two steps and no further one is coming.
        self._steps = 0  # Committed since the last round began.
        self._is_ordered = False  # A round begins as soon as the stage is between two steps.
        self._is_decided = False  # Whether one does after the step that is being committed was said.
        self._has_failed = False  # The last round came to nothing.
        self._unheeded = 0  # Steps in a row after which a sibling that had invited this one was kept waiting.
        self._flight: Flight | None = None  # The round under way, until it is merged.
        self._asked = asyncio.Event()  # Set when there is something to do with the gate shut.
        self._may_merge = asyncio.Event()  # Set when the round under way is to be merged as soon as it has come.
        self._settled = asyncio.Event()  # Cleared while all fragments are to synchronise with training at rest.
        self._settled.set()
        self._is_inherited = False  # True until the round is begun that was ordered where this stage goes on from.
        self._is_frozen = False  # True when no round begins any more: the stage is handed over.
        self._resting = asyncio.Event()  # Set while no round is under way.
        self._resting.set()
        self.on_rest: Callable[[bool], Awaitable[None]] = _nothing  # Awaited after each round while the gate is shut.

    def __repr__(self) -> str:
        what = "no round" if self._flight is None else f"{self._flight.steps} steps beside a round"
        return f"<Rounds {what}, gate {'open' if self.gate.is_set() else 'shut'}>"

    def describe(self) -> str:
        """For what training waits while the gate is shut, in one sentence."""
        what = "numbers go from the stage into a round, or come back"
        if self._flight is not None and not self._flight.come.is_set():
            what = f"a round goes on: {self._averager.reason}"
        return what if self._settled.is_set() else f"settling with the siblings: {what}"

    @property
    def has_progress(self) -> bool:
        """Whether something was learned that is in no committed round."""
        return any(self.handover.samples.values())

    @property
    def is_beside(self) -> bool:
        """Whether a round is under way and steps go on."""
        return self._flight is not None and self.gate.is_set()

    @property
    def is_current(self) -> bool:
        """Whether the stage's values began at what is committed now: nothing has come that is not merged."""
        return self._flight is None or not self._flight.come.is_set()

    @property
    def is_owing(self) -> bool:
        """Whether the last round failed, and nothing was learned since: another try is one of the same step."""
        return self._has_failed and not self._steps

    @property
    def steps(self) -> int:
        """Committed since the last round began."""
        return self._steps

    @property
    def is_ordered(self) -> bool:
        """Whether a round begins before the next step."""
        return self._is_ordered or self._is_inherited

    def resume(self, samples: Sequence[int], steps: int, is_ordered: bool = False) -> None:
        """Go on where another has stopped: what its values stand for, by fragment, its steps since a round, and whether
        one was to begin before the next step; then it does, and not while no step comes that could go on beside it."""
        self.handover.samples = dict(enumerate(samples))
        self._steps, self._is_inherited = steps, is_ordered

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Within, the last round is merged and none begins; nor ever after, unless the block fails."""
        self._is_frozen = True
        self._stop()
        try:
            await self._settled.wait()
            await self._resting.wait()
            yield
        except BaseException:
            self._is_frozen = False
            self.gate.set()
            raise

    def count(self, samples: int, at: StepRef | None = None) -> None:
        """A step of so many samples is committed; `at`: which."""
        self.handover.count(samples, at)
        self._steps += 1
        if self._flight is not None:
            self._flight.steps += 1

    def orders_round(self, ordered: bool | None) -> bool:
        """Whether a round begins after the step that is applied now and will be counted next; `ordered`: what the first
        stage of the route says, None if this is it."""
        steps, self._is_decided = self._steps + 1, True
        self._is_ordered |= self._is_due(steps) if ordered is None else ordered or self._is_overdue(steps)
        return self._is_ordered

    async def boundary(self) -> None:
        """Between two steps: let what is due be done. Returns when the next step may begin."""
        if not self._is_decided:
            # A step that another route has left, of which the first stage says nothing any more.
            self._is_ordered |= self._is_due(self._steps) if self._is_first else self._is_overdue(self._steps)
        self._is_decided = False
        if self.gate.is_set() and (self._is_ordered or self._is_to_be_merged(self._flight)):
            self._stop()
        await self.opened()

    async def attend(self) -> None:
        """Between two steps, with no further one coming: join the round to which this sibling is invited."""
        if self.gate.is_set() and self._flight is None:
            self._is_ordered = True
            self._stop()
        await self.opened()

    async def settle(self) -> None:
        """Synchronise all fragments while training waits, so that the stage holds what is committed."""
        self._settled.clear()
        self._stop()
        # Not until the gate is open: it may be shut again at once, for a sibling that has invited this one.
        with self._journal.blocked():
            await self._settled.wait()

    async def opened(self) -> None:
        """Until the gate is open."""
        if self._is_inherited and self.gate.is_set():
            self._is_inherited, self._is_ordered = False, True
            self._stop()
        if not self.gate.is_set():
            with self._journal.blocked():
                while not self.gate.is_set():
                    await self.gate.wait()

    async def landed(self) -> None:
        """Until it is known what the round under way came to: then nobody needs this sibling for it any more."""
        if self._flight is not None:
            await self._flight.come.wait()

    async def work(self) -> None:
        """Take the rounds that are asked for, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            is_settling = not self._settled.is_set()
            try:
                if is_settling:
                    await self._settle()
                elif not self._is_frozen and self._is_ordered:
                    await self._round()
                await self.on_rest(is_settling)
            finally:
                # Not before: who waits for it may end all this at once. Nor if it is wanted once more.
                if is_settling and not self._asked.is_set():
                    self._settled.set()
                # What was asked for while steps went on beside a round is done at the boundary where that was merged.
                if not self._asked.is_set() and not self._is_frozen:
                    self.gate.set()

    def _is_due(self, steps: int) -> bool:
        """In the first stage of a pipeline: whether a round begins when so many steps are done since the last."""
        how = self._averager.phase
        # A sibling that waits for the next round is not kept waiting for the steps that are left of this one.
        return how is not None and (self._is_wanted or steps >= how.steps)

    def _is_overdue(self, steps: int) -> bool:
        """In another stage, whose first stage orders none: whether it cannot be waited for any longer."""
        how = self._averager.phase
        self._unheeded = self._unheeded + 1 if self._is_wanted else 0
        # Who invites this one after a failed round was ordered to begin that, too.
        most = 1 if self._has_failed else UNHEEDED
        return how is not None and (self._unheeded >= most or steps >= 2 * how.steps)

    @property
    def _is_wanted(self) -> bool:
        """Whether a sibling waits for the next round. Until the one under way has come, it waits for that."""
        return self._averager.invited and (self._flight is None or self._flight.come.is_set())

    def _is_to_be_merged(self, flight: Flight | None) -> bool:
        return flight is not None and flight.steps >= flight.how.overlap

    def _stop(self) -> None:
        self.gate.clear()
        self._may_merge.set()
        self._asked.set()

    async def _settle(self) -> None:
        left = set(self.handover.samples)
        while left:
            touched = await self._round()
            if not touched:
                break
            left -= set(touched)

    async def _round(self) -> Sequence[int]:
        """One round from its beginning to its end; the fragments that it has changed."""
        how, self._is_ordered, self._unheeded = self._averager.phase, False, 0
        self._is_inherited = False
        if how is None:
            return ()
        is_beside = how.overlap > 0 and self._settled.is_set()
        self._steps = 0
        self._resting.clear()
        try:
            begin = partial(self.handover.begin, how, self.handover.share(), is_beside)
            flight = self._flight = await self._device.run(begin)
            if is_beside:
                self._may_merge.clear()
                self.gate.set()
            with self._journal.beside() if is_beside else nullcontext():
                await self._synchronise(flight)
            if flight.outcome is not None or flight.ahead is not None:
                await self._until_boundary()
                await self._device.run(partial(self.handover.merge, flight))
            return self._account(flight)
        except DistqatError as error:
            # The device is closed, or the numbers are not finite.
            self._journal.failed(error)
            return ()
        finally:
            self._flight = None
            self._resting.set()

    async def _synchronise(self, flight: Flight) -> None:
        try:
            flight.outcome = await self._averager.synchronise(
                flight.local, max(flight.samples.values()), flight.origins
            )
        except DistqatError as error:
            # Tried again after as many steps, not after each.
            self._journal.failed(error)
        finally:
            self._has_failed = flight.outcome is None
            flight.come.set()

    async def _until_boundary(self) -> None:
        """Until the stage is between two steps and what has come may be merged."""
        while not self._may_merge.is_set():
            if self._is_idle():
                self.gate.clear()
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._may_merge.wait()

    def _account(self, flight: Flight) -> Sequence[int]:
        touched, outcome = self.handover.account(flight), flight.outcome
        if outcome is not None:
            if outcome.receipt is not None:
                self._journal.committed(outcome.receipt)
            if touched and not is_own(outcome):
                self._journal.caught_up(outcome)
        return touched


async def _nothing(is_settled: bool) -> None:
    """What is done between two steps if nobody wants anything else."""
