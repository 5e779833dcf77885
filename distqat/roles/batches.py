"""How many microbatches make a step: pipelines of unequal speed take equal time between their rounds. Pure.

The size of a microbatch is fixed by the settings, the number of them in a step is not. A step of n microbatches over
S stages takes u (n + S - 1) seconds: u for each microbatch, and S - 1 times u until the last stage has begun and the
first has ended. Every trainer announces its u, and works out its own n from all that it hears; nobody decides for
others. A wrong model does no harm: u is measured anew at the n that it led to, so the times agree in the end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from distqat.discovery.records import Pace
from distqat.sections import DataSection

MOST = 8
"""A step has at most so many times `data.microbatches` microbatches, and at least one."""

LIMIT = 1 << 16
"""And never more than so many, which is what the messages of a route take."""

GAIN = 0.1
"""Another number must bring a step's seconds nearer to the others' by this part of them; less is not worth it."""

DOUBT = 4.0
"""And by so many standard errors of the measurement; less is taken for noise."""

WINDOW = 32
"""Steps whose median is the measurement."""

ENOUGH = 4
"""Steps that must be measured before it is announced."""

COOLDOWN = 8
"""Steps of the present number that are measured before another one may be chosen, and then until it may be again."""

_HALVINGS = 50  # Of an interval of seconds, until it is as narrow as a double can be.
_TINY = 1e-6  # By so much a number of microbatches may be off because of that.


def samples_of(data: DataSection, microbatches: int) -> int:
    """Samples of a step with so many microbatches of the settings' size."""
    return microbatches * data.batch // data.microbatches


def microbatches_of(data: DataSection, samples: int) -> int:
    """Into how many microbatches a batch is split: as many as needed for none to exceed the settings' size.

    It depends on nothing else, so a replay has the split of the first attempt, and one process that of a pipeline.
    """
    return max(1, -(-samples * data.microbatches // data.batch))


def step_seconds(seconds: float, microbatches: int, stages: int) -> float:
    """Seconds that a step takes at so many seconds for each microbatch."""
    return seconds * (microbatches + stages - 1)


@dataclass(frozen=True)
class Bounds:
    """What the settings say of it: `usual` microbatches a step, at most `most`, over so many stages."""

    usual: int
    stages: int

    @property
    def most(self) -> int:
        """Microbatches that a step may have."""
        return max(self.usual, min(MOST * self.usual, LIMIT))


def fair_seconds(bounds: Bounds, paces: Sequence[float]) -> float:
    """The seconds of a step with which all pipelines have the usual number of microbatches on average, and none fewer
    than one or more than the most. `paces` are seconds for each microbatch, all above 0."""
    low, high = min(paces) * bounds.stages, step_seconds(max(paces), bounds.most, bounds.stages)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        total = sum(_number(bounds, middle, pace) for pace in paces)
        low, high = (middle, high) if total < bounds.usual * len(paces) else (low, middle)
    return high


def choose(bounds: Bounds, present: int, mine: float, others: Sequence[Pace], gain: float = GAIN) -> int:
    """The number of microbatches for this pipeline's next step: the present one, unless another is clearly better.

    That is the fair number, rounded; and more of them if they fit into the time of a slower pipeline, which would be
    waited for: a microbatch cannot be divided.
    """
    fair = fair_seconds(bounds, [mine, *(other.seconds for other in others)])
    common = max([fair, *(_taken_seconds(bounds, fair, other) for other in others)])
    best = max(round(_number(bounds, fair, mine)), math.floor(_number(bounds, common, mine) + _TINY))

    def off(number: int) -> float:
        return abs(step_seconds(mine, number, bounds.stages) - common)

    return best if off(present) - off(best) > gain * common else present


def _taken_seconds(bounds: Bounds, fair: float, other: Pace) -> float:
    """What a step of another pipeline takes. Which neighbour of its fair number it has chosen, it says itself; one that
    is further off is on its way there."""
    number = _number(bounds, fair, other.seconds)
    is_there = math.floor(number + _TINY) <= other.microbatches <= math.ceil(number - _TINY)
    return step_seconds(other.seconds, other.microbatches if is_there else round(number), bounds.stages)


def _number(bounds: Bounds, seconds: float, pace: float) -> float:
    """Of microbatches that a step of so many seconds has, were they divisible."""
    return min(max(seconds / pace - bounds.stages + 1, 1.0), float(bounds.most))


class Pacing:
    """The number of microbatches of one pipeline's steps, and what is measured of them."""

    def __init__(self, data: DataSection, stages: int) -> None:
        self.seconds = 0.0  # For each microbatch, as announced; 0 until enough steps are measured.
        self.microbatches = data.microbatches  # Of the steps to come.
        self._data = data
        self._bounds = Bounds(data.microbatches, stages)
        self._measured: deque[float] = deque(maxlen=WINDOW)  # Seconds for each microbatch; steps of the present number.
        self._since = 0  # Steps in `_measured`, also of those that have fallen out of it.

    def __repr__(self) -> str:
        return f"<Pacing {self.microbatches} microbatches a step, {self.seconds * 1000:.1f} ms each>"

    @property
    def samples(self) -> int:
        """Of the steps to come."""
        return samples_of(self._data, self.microbatches)

    def forget(self) -> None:
        """Other experts do the work from now on: nothing is known of their speed."""
        self.seconds = 0.0
        self._measured.clear()
        self._since = 0

    def measured(self, samples: int, seconds: float) -> None:
        """A step of so many samples took so long, without rounds. Steps that are no full ones of the present number say
        little of the ones to come, and are left out."""
        if samples != self.samples or seconds <= 0.0:
            return
        self._measured.append(seconds / (self.microbatches + self._bounds.stages - 1))
        self._since += 1
        if len(self._measured) >= ENOUGH:
            self.seconds = median(self._measured)

    @property
    def error(self) -> float:
        """The standard error of the measurement, as part of it; estimated from the median absolute deviation."""
        middle = median(self._measured)
        sigma = 1.4826 * median(abs(seconds - middle) for seconds in self._measured)
        return 1.2533 * sigma / middle / math.sqrt(len(self._measured))

    def adapt(self, others: Sequence[Pace]) -> bool:
        """Choose anew, now that the other pipelines announce these paces; whether that is a change."""
        if not self._data.adaptive or not self._since or self._since % COOLDOWN:
            return False
        before = self.microbatches
        gain = max(GAIN, DOUBT * self.error)
        self.microbatches = choose(self._bounds, before, self.seconds, others, gain)
        if self.microbatches == before:
            return False
        self._measured.clear()
        self._since = 0
        return True
