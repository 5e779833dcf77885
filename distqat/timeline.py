"""When each thing of a step happened in this process: computing, coding, sending. Pure: the clock is handed in.

One ring of spans for a daemon, and a `Timeline` for each pipeline that it has a part in. A timeline belongs to one
thread, the event loop's; work on other threads is measured there and written down here (`OpenSpan.around`).

    with timeline.span("forward", step=3, index=0) as span:
        output = await device.run(span.around(work), priority)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, NamedTuple, TypeVar

from distqat.times import DOWN, UP, LinkState, Sent, StepSummary, together, values

T = TypeVar("T")

Clock = Callable[[], float]
"""Seconds of one monotonic clock of this process; the clocks of two processes have nothing in common."""

Report = Callable[[str, Mapping[str, str], Mapping[str, float]], None]
"""Takes a metric line: kind, labels, values."""

COMPUTE = ("forward", "backward", "loss", "commit")
ROUND = "round"
CODEC = ("encode", "decode")
WIRE = ("send", "receive")
KINDS = (*COMPUTE, ROUND, *CODEC, *WIRE)
"""What a span may be. Waiting is what is left (`times.StepSummary.wait`)."""

BESIDE = "beside"
"""The way of a round that steps go on beside: it takes no time from them."""

TRAINER = -1
"""The trainer's place, where an expert has the index of its stage. It has no device."""

KEPT_SPANS = 1 << 15
"""Spans that a daemon keeps, of all its pipelines together; older ones are forgotten."""

KEPT_SUMMARIES = 256
"""Steps of one pipeline whose summary is kept."""

KEPT_TIMELINES = 64
"""Pipelines of which a daemon knows something; those that it has left longest ago are forgotten."""

RECENT = 32
"""Committed steps that `Timeline.recent` looks at."""

STEPS_UNDER_WAY = 8
"""Steps that may be begun and not committed; a pipeline has at most two."""


class Span(NamedTuple):
    """One thing that happened. `begin` and `end` are seconds of the process's clock."""

    kind: str
    begin: float
    end: float
    step: int
    """0: it belongs to no step, but to an evaluation or an outer round."""
    microbatch: int
    """Its index in the step; 0 for what concerns the whole step."""
    way: str
    """`DOWN` or `UP` for codec and wire, `BESIDE` for a round that steps go on beside, else empty."""
    bytes: int
    """Encoded bytes, as they travel."""
    raw: int
    """The same tensors before the codec."""


class OpenSpan:
    """A span that has begun; it is written down when the block ends, unless that fails."""

    # A class, where a generator would read shorter: it takes half the time, and there are ten of these a microbatch.
    __slots__ = ("_timeline", "begin", "bytes", "end", "index", "kind", "raw", "step", "way")

    def __init__(self, timeline: Timeline, kind: str, step: int, index: int, way: str) -> None:
        self._timeline = timeline
        self.kind = kind
        self.step = step
        self.index = index
        self.way = way
        self.bytes = 0
        self.raw = 0
        self.begin = 0.0
        self.end = 0.0  # 0 until the end is known.

    def around(self, work: Callable[[], T]) -> Callable[[], T]:
        """The same work, to be done on any thread; the span then lasts as long as that and no longer."""
        clock = self._timeline.clock

        def measured() -> T:
            self.begin = clock()
            try:
                return work()
            finally:
                self.end = clock()

        return measured

    @property
    def seconds(self) -> float:
        """How long it lasted; known after the block."""
        return self.end - self.begin

    def __enter__(self) -> OpenSpan:
        self.begin = self._timeline.clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end = self.end or self._timeline.clock()
        if error is None:
            self._timeline.add(self.kind, self.begin, self.end, self.step, self.index, self.way, self.bytes, self.raw)


class _Tally:
    """Sums of a step that is not committed: seconds by kind, and by way the bytes that were encoded to be sent."""

    __slots__ = ("bytes", "raw", "seconds", "spans")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.bytes = {DOWN: 0, UP: 0}
        self.raw = {DOWN: 0, UP: 0}
        self.spans = 0


class Timeline:
    """One peer's part in one pipeline: that of a stage, or of the trainer. `Timelines.of` makes one."""

    def __init__(self, pipeline: str, name: str, stage: int, clock: Clock, ring: _Ring, report: Report) -> None:
        self.pipeline = pipeline
        self.name = name
        self.stage = stage
        self.clock = clock
        self.links: Mapping[str, LinkState] = {}  # By way, as of the last commit.
        self._ring = ring  # Shared by all timelines of the daemon.
        self._report = report
        self._since = clock()  # When the present step began to count.
        self._computed = 0.0  # Seconds of the device since then.
        self._in_rounds = 0.0  # Seconds of outer rounds since then.
        self._tallies: dict[int, _Tally] = {}  # By step, of those under way.
        self._summaries: deque[StepSummary] = deque(maxlen=KEPT_SUMMARIES)  # Oldest first.

    def __repr__(self) -> str:
        return f"<Timeline {self.pipeline} {self.name}: {len(self._summaries)} steps>"

    def span(self, kind: str, step: int = 0, index: int = 0, way: str = "") -> OpenSpan:
        """Measure the block; set `bytes` and `raw` of what it gives where that is known."""
        return OpenSpan(self, kind, step, index, way)

    def add(
        self,
        kind: str,
        begin: float,
        end: float,
        step: int = 0,
        index: int = 0,
        way: str = "",
        bytes: int = 0,
        raw: int = 0,
    ) -> None:
        """Write down what was measured elsewhere, by the same clock. `kind` is one of `KINDS`."""
        self._ring.append((self, kind, begin, end, step, index, way, bytes, raw))
        seconds = end - begin
        if not way:
            if kind == ROUND:
                self._in_rounds += seconds
            else:
                self._computed += seconds
        tally = self._tallies.get(step)
        if tally is None:
            tally = self._begin(step)
        tally.seconds[kind] += seconds
        tally.spans += 1
        if kind == "encode":
            tally.bytes[way] += bytes
            tally.raw[way] += raw

    def restart(self) -> None:
        """A route opens: what was before it counts for no step, and a step that was begun is begun anew."""
        self._since = self.clock()
        self._computed = self._in_rounds = 0.0
        self._tallies.clear()

    def committed(self, step: int, links: Mapping[str, LinkState] | None = None, stashed: int = 0) -> StepSummary:
        """The step is over here; its summary becomes a metric line. `stashed`: bytes, as in `StepSummary`."""
        self.links = dict(links or {})
        now, tally = self.clock(), self._tallies.pop(step, None) or _Tally()
        seconds = now - self._since
        busy = self._computed + self._in_rounds
        summary = StepSummary(
            step=step,
            begin=self._since,
            end=now,
            seconds=seconds,
            compute=self._computed,
            round=self._in_rounds,
            wait=max(0.0, seconds - busy) if self.stage != TRAINER else 0.0,
            codec=sum(tally.seconds[kind] for kind in CODEC),
            wire=sum(tally.seconds[kind] for kind in WIRE),
            down=Sent(tally.bytes[DOWN], tally.raw[DOWN]),
            up=Sent(tally.bytes[UP], tally.raw[UP]),
            spans=tally.spans,
            stashed=stashed,
        )
        self._summaries.append(summary)
        self._since, self._computed, self._in_rounds = now, 0.0, 0.0
        self._report("hop", {"pipeline": self.pipeline, "stage": self.name}, values(summary, self.links))
        return summary

    def summaries(self, first: int, last: int) -> list[StepSummary]:
        """Of the committed steps from `first` to `last` that are not forgotten, oldest first."""
        return [summary for summary in self._summaries if first <= summary.step <= last]

    def recent(self) -> StepSummary:
        """The last steps together; `step` is the last one, 0 without any."""
        return together(list(self._summaries)[-RECENT:])

    def steps(self) -> tuple[int, int]:
        """The oldest committed step of which all spans are kept, and the newest; 0 and 0 without any."""
        if not self._summaries:
            return 0, 0
        newest = self._summaries[-1].step
        is_full = len(self._ring) == self._ring.maxlen
        horizon = self._ring[0][_END] if is_full else -math.inf
        return next((summary.step for summary in self._summaries if summary.begin >= horizon), newest), newest

    def spans_of(self, first: int, last: int) -> list[Span]:
        """The spans of these steps that are kept, in the order of their beginning; with those that belong to no step
        but lie between, so that it can be seen what the device did, and rounds that the steps went on beside."""
        window = together(self.summaries(first, last))

        def is_wanted(span: Span) -> bool:
            if span.way == BESIDE:
                return span.begin < window.end and span.end > window.begin
            return first <= span.step <= last if span.step else window.begin <= span.begin < window.end

        spans = (Span(*noted[1:]) for noted in self._ring if noted[0] is self)
        return sorted(filter(is_wanted, spans), key=lambda span: span.begin)

    def _begin(self, step: int) -> _Tally:
        if len(self._tallies) >= STEPS_UNDER_WAY:
            # What comes late for a step that is committed, and evaluations.
            del self._tallies[min(self._tallies)]
        return self._tallies.setdefault(step, _Tally())


_Ring = deque[tuple[Timeline, str, float, float, int, int, str, int, int]]
"""Whose span, and its fields: `Span`s are made when somebody asks, since few are ever looked at."""

_END: Final = 3
_STEP: Final = 4


class Timelines:
    """All timelines of one daemon."""

    def __init__(self, clock: Clock, report: Report, capacity: int = KEPT_SPANS) -> None:
        self.clock = clock
        self._report = report
        self._ring: _Ring = deque(maxlen=capacity)
        self._held: dict[tuple[str, str], Timeline] = {}  # By pipeline and name; last used last.

    def __repr__(self) -> str:
        return f"<Timelines {len(self._held)} pipelines, {len(self._ring)}/{self._ring.maxlen} spans>"

    def of(self, pipeline: str, name: str, stage: int) -> Timeline:
        """That of a pipeline and a stage's name ("trainer": with stage `TRAINER`); the same one whenever asked."""
        key = (pipeline, name)
        timeline = self._held.pop(key, None)
        if timeline is None:
            timeline = Timeline(pipeline, name, stage, self.clock, self._ring, self._report)
        self._held[key] = timeline
        if len(self._held) > KEPT_TIMELINES:
            del self._held[next(iter(self._held))]
        return timeline

    def find(self, pipeline: str) -> list[Timeline]:
        """Those of a pipeline, the trainer's first, then by stage."""
        return sorted((held for held in self._held.values() if held.pipeline == pipeline), key=lambda held: held.stage)


def unwatched() -> Timelines:
    """For who has none: nobody looks at them, and their clock stands still."""
    return Timelines(lambda: 0.0, lambda *line: None, capacity=1)
