"""What one pipeline trains on: batches from the claim until they are known to be committed, each with its step.

One batch is claimed ahead of the step that is being submitted: a pipeline waits for samples only where there are none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from distqat.data.claims import Claim
from distqat.data.client import Batch, DataClient, UnreadableError
from distqat.data.steplog import MOST_STEPS

SHOWN_BOOKED = 64
"""Batches that every status tells: more than are booked between two copies of the books. A client whose books are older
asks for all (`Drive.booked`), which are as many as books remember."""


@dataclass(frozen=True)
class Portion:
    """A batch and the step that it is for."""

    step: int
    batch: Batch


class Supply:
    """The batches of one pipeline, in the order of their steps."""

    def __init__(
        self,
        data: DataClient,
        samples: Callable[[], int],
        skipped: Callable[[UnreadableError, int], None] = lambda error, step: None,
    ) -> None:
        """`samples` says how large the next batch should be; `skipped` is told of what cannot be read, and of the step
        that it should have been."""
        self._data = data
        self._samples = samples
        self._skipped = skipped
        self._portions: deque[Portion] = deque()  # Claimed, and not known to be committed; steps without a gap.
        # What was, as it stands in the books: claim, begin, end and step.
        self._booked: deque[tuple[int, int, int, int]] = deque(maxlen=MOST_STEPS)
        self._taken = 0  # Step of the last portion that the present route was given.
        self._claimed = 0  # Step of the last portion.
        self._is_over = False  # No further batch comes: the run's budget is committed.
        self._is_ended = False  # Nothing is given out any more.
        self.is_careful = False  # One step at a time: one of those under way has failed.
        self.is_paused = False  # Nothing is given out until another route opens.
        self._changed = asyncio.Event()  # Set, and replaced, whenever anything above changes.

    def __repr__(self) -> str:
        return f"<Supply {len(self._portions)} batches, {self._claimed - self._taken} ahead of step {self._taken}>"

    @property
    def waiting(self) -> str:
        """Why no batch comes, in one sentence; empty while some are here."""
        return "" if self._portions else self._data.waiting

    async def restart(self, committed: int) -> int:
        """A route opens at this step: what is claimed beyond it is given out; how many batches of it were before."""
        await self.book(committed)
        given, self._taken = self._taken, committed
        self._claimed = self._portions[-1].step if self._portions else committed
        self._is_over = self.is_paused = False
        return sum(portion.step <= given for portion in self._portions)

    async def keep_claiming(self) -> None:
        """Claim the next batch while the present one is submitted, until the budget is committed. May be cancelled."""
        while not self._is_over and not self._is_ended:
            if self._claimed > self._taken:
                await self._changed.wait()
                continue
            try:
                batch = await self._data.next(self._samples(), self._claimed + 1)
            except UnreadableError as error:
                self._skipped(error, self._claimed + 1)
                continue
            # Nothing is awaited between the claim and this: a cancellation cannot lose the batch.
            if batch is None:
                self._is_over = True
            else:
                self._claimed += 1
                self._portions.append(Portion(self._claimed, batch))
            self._notify()

    async def take(self) -> Portion | None:
        """The next step's batch; None when the budget is committed, or when no further step may begin."""
        while not self._is_ended and not self.is_paused:
            if self._claimed > self._taken and not (self.is_careful and self.under_way is not None):
                self._taken += 1
                self._notify()
                return next(portion for portion in self._portions if portion.step == self._taken)
            if self._is_over:
                break
            await self._changed.wait()
        return None

    @property
    def under_way(self) -> Batch | None:
        """The first batch that was given out and is not known to be committed; None when there is none."""
        return self._portions[0].batch if self._portions and self._portions[0].step <= self._taken else None

    def claims(self, pipeline: str) -> tuple[Claim, ...]:
        """What is claimed for that pipeline and not known to be booked."""
        return tuple(_claim(portion, pipeline) for portion in self._portions)

    def booked(self, pipeline: str, most: int = SHOWN_BOOKED) -> tuple[Claim, ...]:
        """The last that were booked."""
        last = islice(self._booked, max(0, len(self._booked) - most), None)
        return tuple(Claim(claim, pipeline, begin, end, step) for claim, begin, end, step in last)

    def pause(self) -> None:
        """Begin no further step on this route."""
        self.is_paused = True
        self._notify()

    def end(self) -> None:
        """Begin no further step, ever."""
        self._is_ended = True
        self._notify()

    async def book(self, committed: int) -> None:
        """All steps up to this one are committed."""
        while self._portions and self._portions[0].step <= committed:
            await self._data.committed(self._portions[0].batch)
            portion = self._portions.popleft()
            self._booked.append((portion.batch.claim, portion.batch.begin, portion.batch.end, portion.step))
            self._notify()

    async def refuse(self, reason: str) -> Batch:
        """Nobody should train on the first batch that is not committed; the ones after it move up by a step."""
        batch = self._portions[0].batch
        await self._data.refuse(batch, reason)
        self._portions.popleft()
        self._portions = deque(replace(portion, step=portion.step - 1) for portion in self._portions)
        # What a route was given stays known as such.
        self._taken -= 1
        self._claimed -= 1
        return batch

    async def give_back(self) -> None:
        """Somebody else trains on what no route was given.

        A route that broke may have committed more than was heard of it. So what it was given is left as it is, until
        whoever keeps the books has asked the stages (`fencing.py`).
        """
        while self._portions and self._portions[-1].step > self._taken:
            await self._data.give_back(self._portions[-1].batch)
            self._portions.pop()
        self._portions.clear()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _claim(portion: Portion, pipeline: str) -> Claim:
    """As it stands in the books."""
    return Claim(portion.batch.claim, pipeline, portion.batch.begin, portion.batch.end, portion.step)
