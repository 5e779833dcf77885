"""Spans of several peers as one trace that Perfetto and Chrome show. Knows nothing of who told them.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU ("X" events with `ts` and
`dur` in microseconds, a process for each part in the pipeline, a thread for each lane).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distqat.ids import short
from distqat.roles.trace.messages import StageTrace, TraceSpan
from distqat.timeline import BESIDE, CODEC, WIRE

Event = dict[str, Any]

LANES = ("compute", "round beside steps", "codec", "wire down", "wire up")
"""In the order in which they stand below each other."""

ROWS = 16
"""Rows that a lane may have: what overlaps, as decoding one microbatch and encoding another, is drawn in several."""


@dataclass(frozen=True)
class Told:
    """What one peer said, and how its clock stands to ours."""

    peer: str
    offset: float
    """Seconds by which its clock is ahead."""
    error: float
    """At most so many seconds is that wrong: half of the shortest round trip."""
    stages: tuple[StageTrace, ...]


def trace(pipeline: str, told: Sequence[Told]) -> dict[str, Any]:
    """The trace of these peers' spans, all on one clock; the first span begins at 0."""
    parts = [(said, stage) for said in told for stage in said.stages if stage.spans]
    parts.sort(key=lambda part: part[1].stage)
    zero = min((span.begin - said.offset for said, stage in parts for span in stage.spans), default=0.0)
    events: list[Event] = []
    for process, (said, stage) in enumerate(parts):
        events += _names(process, f"{stage.name} ({short(said.peer)})", stage)
        events += _events(process, stage, said.offset + zero)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "pipeline": pipeline,
            "clocks": {said.peer: {"offset": said.offset, "error": said.error} for said in told},
            "left_out": {stage.name: stage.left_out for _, stage in parts if stage.left_out},
        },
    }


def lane(span: TraceSpan) -> str:
    """Which lane a span is drawn in."""
    if span.kind in WIRE:
        return f"wire {span.way}"
    if span.way == BESIDE:
        return "round beside steps"
    return "codec" if span.kind in CODEC else "compute"


def rows(spans: Sequence[TraceSpan]) -> list[int]:
    """For spans in the order of their beginning a row each, the lowest that is free: within a row none overlap."""
    ends: list[float] = []
    chosen = []
    for span in spans:
        row = next((row for row, end in enumerate(ends) if end <= span.begin), len(ends))
        if row == len(ends):
            ends.append(span.end)
        ends[row] = span.end
        chosen.append(row)
    return chosen


def idle(stage: StageTrace) -> Iterator[TraceSpan]:
    """The times within its steps in which a stage's device did nothing; none where spans are missing."""
    if stage.stage < 0 or stage.left_out:
        return
    busy = [span for span in stage.spans if lane(span) == "compute"]
    for step in stage.steps:
        now = step.begin
        for span in busy:
            if step.begin <= span.begin < step.end:
                if span.begin > now:
                    yield TraceSpan("wait", now, span.begin, step.step, 0, "", 0, 0)
                now = max(now, span.end)


def _names(process: int, name: str, stage: StageTrace) -> list[Event]:
    return [
        {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}},
        {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": stage.stage}},
    ]


def _events(process: int, stage: StageTrace, offset: float) -> Iterator[Event]:
    for number, name in enumerate(LANES):
        spans = [span for span in stage.spans if lane(span) == name]
        if name == "compute":
            spans = sorted([*spans, *idle(stage)], key=lambda span: span.begin)
        chosen = rows(spans)
        for row in sorted(set(chosen)):
            yield _lane_name(process, number * ROWS + row, name if row == 0 else f"{name} {row + 1}")
        for span, row in zip(spans, chosen, strict=True):
            yield _event(process, number * ROWS + row, span, offset)


def _lane_name(process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": name}}


def _event(process: int, thread: int, span: TraceSpan, offset: float) -> Event:
    facts: Mapping[str, int] = {"step": span.step, "index": span.microbatch}
    if lane(span) != "compute":
        facts = {**facts, "bytes": span.bytes, "raw": span.raw}
    return {
        "ph": "X",
        "name": span.kind,
        "cat": lane(span),
        "pid": process,
        "tid": thread,
        "ts": round((span.begin - offset) * 1e6, 3),
        "dur": round((span.end - span.begin) * 1e6, 3),
        "args": facts,
    }
