"""Which microbatch a stage works on next: one forward, one backward (1F1B, PipeDream-Flush, Narayanan et al. 2021).

Pure: the worker says what has arrived, what is done and how much may be in flight (`pace.py`), the schedule says what
to do next. It is also where the neighbours' manners are checked: order, counts and room; a fault is a MessageError.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from distqat.errors import MessageError
from distqat.ids import MicrobatchId


@dataclass(frozen=True)
class Forward:
    """Run a microbatch through the stage; in the last stage loss and backward too."""

    id: MicrobatchId
    train: bool


@dataclass(frozen=True)
class Backward:
    """Run a microbatch's gradient back through the stage."""

    id: MicrobatchId


@dataclass(frozen=True)
class Apply:
    """Commit a step: apply its gradients once."""

    step: int


@dataclass(frozen=True)
class Agree:
    """Settle: agree on an anchor with the siblings."""

    serial: int


Work = Forward | Backward | Apply | Agree


@dataclass(frozen=True)
class Statistics:
    """A moment of a schedule."""

    committed: int
    waiting: int
    in_flight: int
    most_in_flight: int
    bound: int
    """Of those in flight, now."""


class Schedule:
    """1F1B for one stage of one route, whose step `committed` is committed; it holds at most `most` microbatches."""

    def __init__(self, num_stages: int, stage: int, committed: int, most: int = 64) -> None:
        self.committed = committed
        self._is_first = stage == 0
        self._is_last = stage == num_stages - 1
        self._bound = min(most, num_stages - stage)  # Of those begun and not answered; as `allow` says.
        self._most = most  # Of those and the waiting ones.
        self._forwards: deque[Forward] = deque()  # Arrived, not begun.
        self._backwards: deque[Backward] = deque()  # Arrived, not begun.
        self._commits: deque[Apply] = deque()  # Ordered by stage 0, not begun.
        self._settles: deque[Agree] = deque()  # Asked for, not begun.
        self._in_flight: dict[Forward, bool] = {}  # Begun and not answered; true once the answer from below is there.
        self._counts: dict[int, int] = {}  # Microbatches of each training step that has begun and is not committed.
        self._done = 0  # Training microbatches of step committed + 1 that are through.
        self._last = {True: (MicrobatchId(committed, 0), 1), False: (MicrobatchId(committed, 0), 1)}
        self._most_in_flight = 0

    def __repr__(self) -> str:
        return (
            f"<Schedule step {self.committed}: {len(self._forwards)} waiting, "
            f"{len(self._in_flight)}/{self._bound} in flight>"
        )

    def allow(self, bound: int) -> None:
        """So many microbatches may be in flight from now on. Where more are, the next forward waits until it fits; the
        order never changes."""
        self._bound = min(self._most, bound)

    def forward_arrived(self, id: MicrobatchId, count: int, train: bool = True) -> None:
        """Microbatch `id` of the `count` of its step is there."""
        self._check_order(id, count, train)
        if len(self._forwards) + len(self._in_flight) >= self._most:
            raise MessageError(f"more than {self._most} microbatches under way in one stage")
        self._last[train] = (id, count)
        if train:
            self._counts[id.step] = count
        self._forwards.append(Forward(id, train))

    def backward_arrived(self, id: MicrobatchId) -> None:
        """The gradient of a microbatch is there."""
        self._answer(Forward(id, train=True), "gradient")
        self._backwards.append(Backward(id))

    def outcome_arrived(self, id: MicrobatchId) -> None:
        """The stages below are through with a microbatch of an evaluation."""
        forward = Forward(id, train=False)
        self._answer(forward, "outcome")
        del self._in_flight[forward]

    def commit_arrived(self, step: int) -> None:
        """Stage 0 says that a step is complete."""
        expected = self.committed + len(self._commits) + 1
        if self._is_first or step != expected or not self._is_through(step):
            raise MessageError(f"a commit of step {step}, where step {expected} is not complete or comes first")
        self._commits.append(Apply(step))

    def settle_arrived(self, serial: int) -> None:
        """The trainer wants the stages to settle."""
        if len(self._settles) > 1:
            raise MessageError("more than two requests to settle at once")
        self._settles.append(Agree(serial))

    def next(self) -> Work | None:
        """What to do now, or None: wait for something to arrive. Backward first, then commits, forwards last."""
        if self._backwards:
            return self._backwards.popleft()
        if self._is_first and self._is_through(self.committed + 1):
            return Apply(self.committed + 1)
        if self._commits:
            return self._commits.popleft()
        if self._settles:
            return self._settles.popleft()
        return self._next_forward()

    def done(self, work: Work) -> None:
        """What `next` gave is done."""
        match work:
            case Forward(_, train):
                if self._is_last:
                    del self._in_flight[work]
                    self._done += train
            case Backward(id):
                del self._in_flight[Forward(id, train=True)]
                self._done += 1
            case Apply(step):
                del self._counts[step]
                self.committed = step
                self._done = 0
            case Agree():
                pass

    def drop_forwards(self) -> None:
        """No more answers are wanted: forget the microbatches that have not begun."""
        self._forwards.clear()

    def statistics(self) -> Statistics:
        """How things stand."""
        return Statistics(self.committed, len(self._forwards), len(self._in_flight), self._most_in_flight, self._bound)

    def _next_forward(self) -> Forward | None:
        if not self._forwards or len(self._in_flight) >= self._bound:
            return None
        # Nothing of a step may see parameters from before the step in front of it.
        if self._forwards[0].id.step != self.committed + 1:
            return None
        forward = self._forwards.popleft()
        self._in_flight[forward] = False
        self._most_in_flight = max(self._most_in_flight, len(self._in_flight))
        return forward

    def _is_through(self, step: int) -> bool:
        return step == self.committed + 1 and self._counts.get(step) == self._done

    def _answer(self, forward: Forward, what: str) -> None:
        if self._in_flight.get(forward, True) or self._is_last:
            raise MessageError(f"a {what} for {forward.id}, which does not wait for one")
        self._in_flight[forward] = True

    def _check_order(self, id: MicrobatchId, count: int, train: bool) -> None:
        (last, of), word = self._last[train], "training" if train else "evaluation"
        if not 0 <= id.index < count:
            raise MessageError(f"{word} microbatch {id.index} of {count}")
        if last.index + 1 < of:
            fits = id == MicrobatchId(last.step, last.index + 1) and count == of
        else:
            # An evaluation may come again for the same step; training goes on to the next one.
            fits = id.index == 0 and (id.step == last.step + 1 if train else id.step > self.committed)
        if not fits:
            raise MessageError(f"{word} microbatch {id.index} of step {id.step} after {last.index} of step {last.step}")
