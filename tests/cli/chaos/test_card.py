"""The verdict of a run under faults: each shortcoming is seen and named."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from distqat.cli.chaos.card import Books, FaultCard, Limits, Quality, Spans
from distqat.cli.chaos.schedule import Fault, Kind
from distqat.cli.chaos.watch import Digests, Span, Wound
from distqat.cli.scorecard import Baseline


def wound(number: int, kind: Kind, seconds: float, stage: int | None = 0) -> Wound:
    return Wound(Fault(number, kind, 10.0, 3.0, 0.5), "expert-1", stage, 100.0, 103.0, 100.0 + seconds)


def digests(*others: str) -> Digests:
    return Digests({(0, 1 + n): {"a": "x", "b": other} for n, other in enumerate(("x", *others))})


GOOD = FaultCard(
    seed=7,
    limits=Limits(keep=0.9, recovery=60.0),
    asked={Kind.KILL: 2, Kind.STOP: 1},
    wounds=(wound(0, Kind.KILL, 1.0), wound(1, Kind.STOP, 5.0), wound(2, Kind.KILL, 2.0)),
    spans=Spans(Span(10.0, 10.0, 1000), Span(100.0, 95.0, 9500), Span(10.0, 10.0, 900)),
    books=Books(samples=11400, replays=3),
    digests=digests("x"),
    quality=Quality("accuracy", 0.97, Baseline("accuracy", 0.98, 100.0, 10, 100.0)),
)


def test_a_good_run_passes_and_everything_is_counted() -> None:
    assert GOOD.passed
    tree = json.loads(GOOD.as_json())
    assert tree["passed"] is True
    assert tree["asked"] == tree["injected"] == {"kill": 2, "stop": 1}
    assert tree["recovery_seconds"]["kill"] == {"count": 2, "p50": 1.0, "p95": 2.0, "p99": 2.0, "longest": 2.0}
    assert tree["throughput_kept"] == 1.0
    assert tree["throughput_kept_of_all"] == 0.95
    assert tree["digests_compared"] == 2
    assert tree["rounds_died"] == 0
    assert [fault["recovery"] for fault in tree["faults"]] == [1.0, 5.0, 2.0]
    assert tree["baseline"] == 0.98


def test_it_is_shown_for_people() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(GOOD.render())
    assert "p50 1.00  p95 2.00  p99 2.00  of 2" in out.getvalue()
    assert "passed" in out.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wounds": GOOD.wounds[:2]}, "asked for 2 x kill, injected 1"),
        ({"wounds": (*GOOD.wounds, wound(3, Kind.CUT, 1.0))}, "asked for 0 x cut, injected 1"),
        ({"wounds": (*GOOD.wounds[:2], wound(2, Kind.KILL, 61.0))}, "fault 2 (kill) did not recover in 60 s"),
        ({"wounds": (*GOOD.wounds[:2], wound(2, Kind.KILL, math.nan))}, "fault 2 (kill) did not recover"),
        ({"spans": replace(GOOD.spans, during=Span(100.0, 95.0, 8000))}, "throughput kept is 0.842, below 0.9"),
        ({"spans": Spans()}, "throughput kept is nan"),
        ({"books": Books(lost=2)}, "2 samples lost, 0 doubled"),
        ({"books": Books(doubled=3)}, "0 samples lost, 3 doubled"),
        ({"books": Books(skipped=16)}, "16 samples skipped"),
        ({"digests": Digests()}, "no digests could be compared"),
        ({"digests": digests("y")}, "digests of stage 0 round 2 are not equal"),
        ({"quality": replace(GOOD.quality, swarm=0.95)}, "accuracy 0.9500, 0.9800 in one process are too far apart"),
        ({"quality": replace(GOOD.quality, swarm=math.nan)}, "too far apart"),
        ({"broke_off": "daemon expert-1 ended by itself"}, "ended by itself"),
    ],
)
def test_each_shortcoming_is_named(change: Mapping[str, Any], words: str) -> None:
    card = replace(GOOD, **change)
    assert not card.passed
    assert words in "; ".join(card.failures)
    assert json.loads(card.as_json())["passed"] is False


def test_rounds_that_died_with_their_only_witness_are_counted_and_do_not_fail_the_run() -> None:
    card = replace(GOOD, digests=Digests(digests("x").by_round, died=2))
    out = io.StringIO()
    Console(file=out, width=240).print(card.render())
    assert card.passed
    assert json.loads(card.as_json())["rounds_died"] == 2
    assert "died with the only one" in out.getvalue()


def test_samples_that_were_skipped_are_shown() -> None:
    for books, is_shown in ((Books(skipped=16), True), (Books(), False)):
        out = io.StringIO()
        Console(file=out, width=240).print(replace(GOOD, books=books).render())
        assert ("samples skipped" in out.getvalue()) is is_shown


def test_the_better_of_both_rates_without_faults_counts() -> None:
    late = replace(GOOD, spans=replace(GOOD.spans, after=Span(10.0, 10.0, 2000)))
    assert late.kept == 0.5


def test_a_loss_may_be_two_hundredths_above_the_baseline() -> None:
    alone = Baseline("bits_per_byte", 3.0, 1.0, 1, 1.0)
    assert Quality("bits_per_byte", 3.05, alone).is_near
    assert not Quality("bits_per_byte", 3.07, alone).is_near


def test_without_a_baseline_nothing_is_compared() -> None:
    card = replace(GOOD, quality=Quality())
    assert card.passed
    assert json.loads(card.as_json())["evaluation"] is None
    assert card.beside(Baseline("accuracy", 0.98, 1.0, 1, 1.0)).failures
