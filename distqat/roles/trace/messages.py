"""The spans of some steps on the wire: the messages of `Control.Trace`."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.pb import control_pb2 as pb
from distqat.roles.messages import SERVICE
from distqat.rpc import mirror
from distqat.rpc.transport import Method
from distqat.timeline import Timeline, Timelines
from distqat.times import StepSummary

TRACE = Method(SERVICE, "Trace")

MAX_SPANS = 4096
"""Spans in one answer; of a step with more only the first are told."""


@dataclass(frozen=True)
class TraceRequest:
    """Asks for the spans of some steps of a pipeline; `most` = 0: only the clock, and which steps there are."""

    pipeline: str
    first: int = 0
    last: int = 0
    most: int = 0

    def encode(self) -> bytes:
        """As bytes."""
        return mirror.encode(self, pb.TraceRequest)

    @classmethod
    def decode(cls, data: bytes) -> TraceRequest:
        """From bytes. Raises MessageError."""
        return mirror.decode(cls, data, pb.TraceRequest)


@dataclass(frozen=True)
class TraceSpan:
    """A `timeline.Span` on the wire."""

    kind: str
    begin: float
    end: float
    step: int
    microbatch: int
    way: str
    bytes: int
    raw: int


@dataclass(frozen=True)
class StepTrace:
    """A `timeline.StepSummary` on the wire."""

    step: int
    begin: float
    end: float
    compute: float
    round: float
    wait: float
    codec: float
    wire: float
    bytes: int
    raw: int

    @classmethod
    def of(cls, summary: StepSummary) -> StepTrace:
        """The same, both ways together."""
        return cls(
            step=summary.step,
            begin=summary.begin,
            end=summary.end,
            compute=summary.compute,
            round=summary.round,
            wait=summary.wait,
            codec=summary.codec,
            wire=summary.wire,
            bytes=summary.down.bytes + summary.up.bytes,
            raw=summary.down.raw + summary.up.raw,
        )


@dataclass(frozen=True)
class StageTrace:
    """One peer's part in a pipeline; `left_out` spans of the steps asked for were too many, or are forgotten."""

    name: str
    stage: int
    oldest: int
    newest: int
    steps: tuple[StepTrace, ...] = ()
    spans: tuple[TraceSpan, ...] = ()
    left_out: int = 0

    @classmethod
    def of(cls, timeline: Timeline, first: int, last: int, most: int) -> StageTrace:
        """What a timeline says of these steps, at most `most` spans."""
        oldest, newest = timeline.steps()
        if not most:
            return cls(timeline.name, timeline.stage, oldest, newest)
        summaries = timeline.summaries(first, last)
        spans = timeline.spans_of(first, last)
        told = spans[: min(most, MAX_SPANS)]
        forgotten = max(0, sum(summary.spans for summary in summaries) - sum(span.step > 0 for span in spans))
        return cls(
            name=timeline.name,
            stage=timeline.stage,
            oldest=oldest,
            newest=newest,
            steps=tuple(StepTrace.of(summary) for summary in summaries),
            spans=tuple(TraceSpan(*span) for span in told),
            left_out=forgotten + len(spans) - len(told),
        )


@dataclass(frozen=True)
class TraceReply:
    """What a daemon knows of these steps; all times are of its `clock`, read when the request came."""

    clock: float
    stages: tuple[StageTrace, ...]

    @classmethod
    def of(cls, timelines: Timelines, wanted: TraceRequest) -> TraceReply:
        """What a daemon's timelines say."""
        clock = timelines.clock()
        parts = timelines.find(wanted.pipeline)
        return cls(clock, tuple(StageTrace.of(part, wanted.first, wanted.last, wanted.most) for part in parts))

    def encode(self) -> bytes:
        """As bytes."""
        return mirror.encode(self, pb.TraceReply)

    @classmethod
    def decode(cls, data: bytes) -> TraceReply:
        """From bytes. Raises MessageError."""
        return mirror.decode(cls, data, pb.TraceReply)
