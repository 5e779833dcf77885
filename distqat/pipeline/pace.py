"""How many microbatches are under way: as many as keep the slowest stage at work, by measured times. Pure.

With S stages that take t seconds for a microbatch (forward and backward) and links without latency, 1F1B keeps S - i
under way in stage i. Over a link whose round trip takes r, the answers come r later, so ceil(r / t) more are needed
above it. Every place on a route (a stage, or the trainer above them all) measures its own work and the round trip to
its neighbour below, and hears of the rest by `Ping` and `Pong`.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from distqat.errors import MessageError
from distqat.pipeline.words import Ping, Pong

TRAINER = -1
"""The trainer's place, above stage 0."""

KEPT_TIMES = 15
"""Of a kind of work; the median of them counts, so a stall or a first slow run does not."""

KEPT_TRIPS = 16
"""Round trips of a hop; the shortest of them counts, since a ping may wait behind a long message."""

SLACK = 0.05
"""Round trips are rounded up but for so much of a microbatch's time: less than that is not worth the memory."""


def in_flight_bound(
    num_stages: int, stage: int, round_trips: Sequence[float] = (), slowest: float = 0.0, most: int = 1 << 30
) -> int:
    """Microbatches that a stage may have forwarded and not had back; for `TRAINER`: sent and not answered.

    `round_trips` are those of the links below it in seconds (twice the latency, and what coding takes), as far as they
    are known; `slowest` the seconds of forward and backward of the slowest stage, 0: not known.
    """
    extra = sum(max(0, math.ceil(trip / slowest - SLACK)) for trip in round_trips) if slowest > 0 else 0
    return min(most, num_stages - stage + extra)


class Median:
    """A typical number of seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=KEPT_TIMES)

    @property
    def is_known(self) -> bool:
        """Whether there is one at all."""
        return bool(self._times)

    @property
    def seconds(self) -> float:
        """The median; 0 while it is not known."""
        return statistics.median_low(self._times) if self._times else 0.0

    def add(self, seconds: float) -> None:
        """It took so long once more."""
        self._times.append(seconds)


@dataclass(frozen=True)
class PaceState:
    """What a place knows of its route's speed, in seconds."""

    slowest: float
    """A microbatch at the slowest stage or link of the route; 0: not known."""
    round_trips: tuple[float, ...]
    """Of the hops below, the next one first; shorter than the route while not all are known."""
    bound: int
    """Microbatches that may be under way here."""


class Pace:
    """What one place knows. `most` is the largest bound that is allowed."""

    def __init__(self, num_stages: int, stage: int, most: int) -> None:
        self._num_stages = num_stages
        self._stage = stage
        self._most = most
        self._work = {kind: Median() for kind in ("forward", "backward", "loss")}  # On the device.
        # A microbatch's tensors of the hops above and below: what is done with them one after the other, in one task.
        self._hops = {place: {what: Median() for what in ("encode", "send", "decode")} for place in ("above", "below")}
        self._trips: deque[float] = deque(maxlen=KEPT_TRIPS)  # To the next place below and back, without tensors.
        self._above = 0.0  # The slowest above, as the last ping said.
        self._below = Pong(0)  # What the last pong said.
        self._asked: Ping | None = None  # The ping that waits for its answer; None while none does.
        self._asked_at = 0.0

    def __repr__(self) -> str:
        state = self.statistics()
        trips = ", ".join(f"{trip * 1e3:.1f}" for trip in state.round_trips)
        return f"<Pace {state.bound} in flight: {state.slowest * 1e3:.1f} ms a microbatch, round trips [{trips}] ms>"

    def statistics(self) -> PaceState:
        """How things stand."""
        return PaceState(self._slowest, self.round_trips, self.bound)

    @property
    def bound(self) -> int:
        """Microbatches that may be under way here now."""
        return in_flight_bound(self._num_stages, self._stage, self.round_trips, self._slowest, self._most)

    @property
    def round_trips(self) -> tuple[float, ...]:
        """Of the hops below, the next one first."""
        if not self._trips:
            return ()
        own = min(self._trips) + self._handling("below") + self._below.handling
        return (own, *self._below.round_trips)

    def worked(self, kind: str, seconds: float) -> None:
        """The device did a "forward", a "backward", or a "loss" that is both."""
        self._work[kind].add(seconds)

    def handled(self, place: str, what: str, seconds: float) -> None:
        """A microbatch's tensors of the hop to the place "above" or "below" took so long to "encode", "send" or
        "decode"."""
        self._hops[place][what].add(seconds)

    def ping(self, now: float) -> Ping:
        """Ask the place below; one at a time."""
        serial = self._asked.serial if self._asked is not None else self._below.serial
        self._asked, self._asked_at = Ping(serial + 1, max(self._above, self._here)), now
        return self._asked

    def answer(self, ping: Ping) -> Pong:
        """Answer the place above."""
        self._above = ping.slowest
        return Pong(ping.serial, max(self._here, self._below.slowest), self._handling("above"), self.round_trips)

    def answered(self, pong: Pong, now: float) -> None:
        """The place below has answered. Raises MessageError when it was not asked, or knows of more than there is."""
        if self._asked is None or pong.serial != self._asked.serial:
            raise MessageError(f"an answer to ping {pong.serial}, which does not wait for one")
        if len(pong.round_trips) > self._num_stages - 2 - self._stage:
            raise MessageError(f"{len(pong.round_trips)} hops below stage {self._stage + 1} of {self._num_stages}")
        self._trips.append(now - self._asked_at)
        self._below, self._asked = pong, None

    @property
    def _slowest(self) -> float:
        return max(self._above, self._here, self._below.slowest)

    @property
    def _here(self) -> float:
        """Seconds of a microbatch at the slowest thing here: the device, or one direction of a hop."""
        work = self._work
        if work["loss"].is_known:
            compute = work["loss"].seconds
        else:
            compute = work["forward"].seconds + work["backward"].seconds if work["backward"].is_known else 0.0
        ways = [
            way
            for hop in self._hops.values()
            for way in (hop["encode"].seconds + hop["send"].seconds, hop["decode"].seconds)
        ]
        return max(compute, *ways)

    def _handling(self, place: str) -> float:
        """Of one microbatch, both ways."""
        return sum(median.seconds for median in self._hops[place].values())
