"""When a step is tried again, when it is given up, and when everything is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distqat.errors import find
from distqat.roles.refusals import FAILURES, MOST_REFUSED, Doubts, Failure, Hopes

NAN = Failure(7, "TensorError", "stage 1", "the input holds NaN")
GONE = Failure(7, "UnreachableError", "stage 1", "the stream has ended")


def fails(doubts: Doubts, failure: Failure, times: int) -> str:
    for _ in range(times):
        doubts.failed(failure)
    return doubts.why_refuse()


@pytest.mark.parametrize("kind", FAILURES)
def test_the_same_failure_again_and_again_is_given_up(kind: str) -> None:
    assert find(kind) is not None
    doubts, failure = Doubts(), replace(NAN, kind=kind)
    assert doubts.failed(failure)
    assert not fails(doubts, failure, FAILURES[kind] - 2)
    doubts.failed(failure)
    assert doubts.why_refuse() == f"failed {FAILURES[kind]} times in the same way: {kind} at stage 1: {NAN.reason}"


@pytest.mark.parametrize("other", [{"claim": 8}, {"stage": "stage 0"}, {"reason": "another"}])
def test_another_failure_begins_to_count_anew(other: dict[str, object]) -> None:
    doubts = Doubts()
    fails(doubts, NAN, 2)
    assert not fails(doubts, replace(NAN, **other), 2)  # type: ignore[arg-type]
    assert fails(doubts, replace(NAN, **other), 1)  # type: ignore[arg-type]


def test_what_the_network_does_is_tried_for_ever() -> None:
    doubts = Doubts()
    assert not doubts.failed(GONE)
    assert not fails(doubts, GONE, 100)


def test_a_commit_ends_all_doubts() -> None:
    doubts = Doubts()
    fails(doubts, NAN, 2)
    doubts.committed()
    assert not fails(doubts, NAN, 2)


def test_one_batch_after_the_other_is_too_much() -> None:
    doubts = Doubts()
    assert [doubts.refused() for _ in range(MOST_REFUSED)] == [False] * (MOST_REFUSED - 1) + [True]
    doubts.committed()
    assert not doubts.refused()


def test_a_run_has_failed_when_one_pipeline_after_the_other_does_and_nothing_is_committed() -> None:
    hopes = Hopes()
    assert not hopes.why_hopeless({"p1": "every batch fails"}, 0)
    assert not hopes.why_hopeless({"p1": "every batch fails"}, 0)
    assert not hopes.why_hopeless({}, 64)
    assert not hopes.why_hopeless({"p2": "every batch fails"}, 64)
    assert not hopes.why_hopeless({}, 64)
    assert hopes.why_hopeless({"p3": "no memory"}, 64).endswith("lately of pipeline p3: no memory")
