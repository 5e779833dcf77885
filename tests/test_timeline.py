"""Spans, what they add up to, and what they cost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.telemetry import Telemetry
from distqat.timeline import BESIDE, CODEC, KEPT_TIMELINES, ROUND, TRAINER, WIRE, Span, Timeline, Timelines
from distqat.times import DOWN, UP, LinkState, Sent, StepSummary, together


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Lines:
    """Keeps metric lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Mapping[str, str], Mapping[str, float]]] = []

    def __call__(self, kind: str, labels: Mapping[str, str], values: Mapping[str, float]) -> None:
        self.lines.append((kind, labels, values))


def make(capacity: int = 1000, stage: int = 0) -> tuple[Timeline, Clock, Lines]:
    clock, lines = Clock(), Lines()
    name = "trainer" if stage == TRAINER else f"mlp/{stage}"
    return Timelines(clock, lines, capacity).of("p1", name, stage), clock, lines


def spend(timeline: Timeline, clock: Clock, kind: str, seconds: float, step: int = 1, way: str = "") -> None:
    with timeline.span(kind, step, way=way) as span:
        clock.now += seconds
        span.bytes, span.raw = 10, 40


def test_a_span_is_as_long_as_its_block() -> None:
    timeline, clock, _ = make()
    with timeline.span("encode", 3, 2, UP) as span:
        clock.now += 0.5
        span.bytes, span.raw = 100, 400
    assert timeline.spans_of(3, 3) == [Span("encode", 100.0, 100.5, 3, 2, UP, 100, 400)]
    assert span.seconds == 0.5


def test_a_span_around_work_leaves_out_the_wait_for_it() -> None:
    timeline, clock, _ = make()

    def work() -> str:
        clock.now += 1.0
        return "done"

    with timeline.span("forward", 1) as span:
        job = span.around(work)
        clock.now += 5.0
        assert job() == "done"
        clock.now += 7.0
    assert [(span.begin, span.end) for span in timeline.spans_of(1, 1)] == [(105.0, 106.0)]


def test_what_fails_is_not_written_down() -> None:
    timeline, _, _ = make()
    with pytest.raises(ZeroDivisionError), timeline.span("forward", 1):
        raise ZeroDivisionError
    assert timeline.spans_of(0, 9) == []


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        make()[0].add("dance", 1.0, 2.0, 1)


def test_a_summary_says_where_the_time_went() -> None:
    timeline, clock, _ = make()
    spend(timeline, clock, "decode", 0.25, way=DOWN)
    spend(timeline, clock, "forward", 1.0)
    spend(timeline, clock, "encode", 0.25, way=DOWN)
    spend(timeline, clock, "send", 0.5, way=DOWN)
    spend(timeline, clock, "encode", 0.25, way=UP)
    spend(timeline, clock, "backward", 2.0)
    spend(timeline, clock, "commit", 0.25)
    assert timeline.committed(1) == StepSummary(
        step=1,
        begin=100.0,
        end=104.5,
        seconds=4.5,
        compute=3.25,
        wait=1.25,
        codec=0.75,
        wire=0.5,
        down=Sent(10, 40),
        up=Sent(10, 40),
        spans=7,
    )


def test_a_step_begins_where_the_one_before_was_committed() -> None:
    timeline, clock, _ = make()
    spend(timeline, clock, "commit", 1.0)
    timeline.committed(1)
    clock.now += 3.0
    # What comes early, while the step before is under way, counts for its own step.
    timeline.add("decode", clock.now - 4.0, clock.now - 3.5, 2, way=DOWN)
    spend(timeline, clock, "commit", 1.0, 2)
    second = timeline.committed(2)
    assert (second.begin, second.seconds, second.compute, second.wait, second.codec) == (101.0, 4.0, 1.0, 3.0, 0.5)


def test_a_route_that_opens_makes_a_new_beginning() -> None:
    timeline, clock, _ = make()
    spend(timeline, clock, "forward", 1.0)
    spend(timeline, clock, "encode", 1.0, way=DOWN)
    clock.now += 60.0
    timeline.restart()
    spend(timeline, clock, "commit", 1.0)
    assert timeline.committed(1) == StepSummary(1, 162.0, 163.0, 1.0, 1.0, spans=1)


def test_rounds_and_evaluations_are_no_waiting() -> None:
    timeline, clock, _ = make()
    timeline.committed(1)
    spend(timeline, clock, ROUND, 4.0, step=0)
    spend(timeline, clock, "forward", 2.0, step=0)
    spend(timeline, clock, "commit", 1.0, step=2)
    summary = timeline.committed(2)
    assert (summary.round, summary.compute, summary.wait) == (4.0, 3.0, 0.0)
    # They belong to no step, but are seen with the one in whose time they fall.
    assert [span.kind for span in timeline.spans_of(2, 2)] == [ROUND, "forward", "commit"]
    assert timeline.spans_of(1, 1) == []


def test_a_round_beside_steps_takes_no_time_from_them_and_is_seen_with_all_of_them() -> None:
    timeline, clock, _ = make()
    timeline.committed(1)
    began = clock.now
    for step in (2, 3):
        spend(timeline, clock, "forward", 3.0, step=step)
        clock.now += 1.0
        summary = timeline.committed(step)
        assert (summary.compute, summary.round, summary.wait) == (3.0, 0.0, 1.0)
    timeline.add(ROUND, began + 1.0, clock.now - 0.5, way=BESIDE)
    for step in (2, 3):
        assert [(span.kind, span.way) for span in timeline.spans_of(step, step) if span.step == 0] == [(ROUND, BESIDE)]
    assert timeline.spans_of(1, 1) == []


def test_a_trainer_has_no_device_that_could_wait() -> None:
    timeline, clock, _ = make(stage=TRAINER)
    clock.now += 5.0
    assert timeline.committed(1).wait == 0.0


def test_each_committed_step_is_a_metric_line() -> None:
    timeline, clock, lines = make()
    spend(timeline, clock, "encode", 0.5, way=UP)
    spend(timeline, clock, "commit", 0.5)
    timeline.committed(1, {UP: LinkState(1e6, True), DOWN: LinkState(2e6)}, stashed=512)
    kind, labels, values = lines.lines[0]
    assert (kind, labels) == ("hop", {"pipeline": "p1", "stage": "mlp/0"})
    assert values == {
        "step": 1, "seconds": 1.0, "compute": 0.5, "round": 0.0, "wait": 0.5, "codec": 0.5, "wire": 0.0, "bytes": 10,
        "raw": 40, "stashed": 512, "link_rate_up": 1e6, "compressed_up": 1.0, "link_rate_down": 2e6,
        "compressed_down": 0.0,
    }  # fmt: skip
    assert len(lines.lines) == 1


kinds = st.sampled_from(["forward", "backward", "loss", "commit", ROUND, *CODEC, *WIRE])
things = st.lists(st.tuples(kinds, st.integers(1, 9), st.sampled_from([UP, DOWN])))


@given(
    st.lists(st.tuples(st.integers(1, 4), st.lists(st.tuples(kinds, st.integers(1, 9), st.sampled_from([UP, DOWN])))))
)
def test_sums_are_those_of_the_spans(steps: list[tuple[int, list[tuple[str, int, str]]]]) -> None:
    timeline, clock, _ = make(10_000)
    for number, (idle, spans) in enumerate(steps, start=1):
        expected: dict[str, float] = defaultdict(float)
        for kind, seconds, way in spans:
            is_local = kind not in (*CODEC, *WIRE)
            spend(timeline, clock, kind, seconds, 0 if kind == ROUND else number, "" if is_local else way)
            expected["round" if kind == ROUND else "compute" if is_local else kind] += seconds
        clock.now += idle
        found = timeline.committed(number)
        assert found.compute == expected["compute"]
        assert found.round == expected["round"]
        assert found.codec == expected["encode"] + expected["decode"]
        assert found.wire == expected["send"] + expected["receive"]
        assert found.compute + found.round + found.wait == found.seconds
        assert found.down.bytes + found.up.bytes == 10 * sum(kind == "encode" for kind, _, _ in spans)
    whole = together(timeline.summaries(1, len(steps)))
    assert whole.seconds == clock.now - 100.0 if steps else whole == StepSummary()
    assert timeline.recent() == together(timeline.summaries(len(steps) - 31, len(steps)))


def test_old_spans_are_forgotten_and_it_is_known_which_steps_are_whole() -> None:
    timeline, clock, _ = make(capacity=25)
    assert timeline.steps() == (0, 0)
    for step in range(1, 11):
        for _ in range(10):
            spend(timeline, clock, "forward", 1.0, step)
        timeline.committed(step)
    assert timeline.steps() == (9, 10)
    assert len(timeline.spans_of(1, 10)) == 25
    assert [summary.step for summary in timeline.summaries(0, 99)] == list(range(1, 11))


def test_a_step_larger_than_the_ring_keeps_its_sums() -> None:
    timeline, clock, _ = make(capacity=100)
    for _ in range(5000):
        spend(timeline, clock, "forward", 1.0)
    summary = timeline.committed(1)
    assert (summary.compute, summary.spans) == (5000.0, 5000)
    assert timeline.steps() == (1, 1)
    assert len(timeline.spans_of(1, 1)) == 100


def test_what_comes_late_piles_up_nowhere() -> None:
    timeline, clock, _ = make()
    for step in range(1, 1000):
        timeline.committed(step)
        spend(timeline, clock, "send", 1.0, step, UP)
        spend(timeline, clock, "forward", 1.0, 0)
    assert len(timeline._tallies) <= 8
    spend(timeline, clock, "commit", 1.0, 1000)
    assert timeline.committed(1000).wire == 0.0


def test_a_daemon_has_one_timeline_for_each_of_its_parts() -> None:
    held = Timelines(Clock(), Lines())
    stage, trainer = held.of("p1", "mlp/0", 0), held.of("p1", "trainer", TRAINER)
    held.of("p2", "mlp/0", 0)
    assert held.of("p1", "mlp/0", 0) is stage
    assert held.find("p1") == [trainer, stage]
    assert held.find("p3") == []
    for number in range(KEPT_TIMELINES):
        held.of("p1", "mlp/0", 0)
        held.of(f"q{number}", "mlp/0", 0)
    assert held.of("p1", "mlp/0", 0) is stage
    assert held.find("p2") == []


def test_spans_cost_next_to_nothing() -> None:
    """An expert of the digits run writes about 50 spans in a step of 50 ms: at 5 us a span that is half a percent."""
    telemetry = Telemetry()
    timeline = telemetry.timelines.of("p1", "mlp/0", 0)

    def batch(step: int) -> float:
        begin = time.thread_time()
        for index in range(100):
            with timeline.span("send", step, index, DOWN) as span:
                span.bytes = 10
        timeline.committed(step)
        return (time.thread_time() - begin) / 100

    assert min(batch(step) for step in range(1, 50)) < 5e-6
    assert telemetry.since(0)[-1].kind == "hop"
