"""The form of a line, and the arithmetic of ratio, goal and spread."""

from __future__ import annotations

import json

import pytest

from bench.case import Better, Case, Goal, interleave
from tests.support import run

KEYS = ["bench", "case", "value", "unit", "better", "peer", "peer_value", "ratio", "goal", "ok", "runs", "spread"]


def test_a_line_has_the_form_of_the_house() -> None:
    case = Case("stream", "tensors", "GB/s", "higher", "grpc.aio", Goal("ratio", 0.8))
    text = case.line([1.0, 0.9, 1.23456], [2.0, 1.0, 1.0]).to_json()
    assert "\n" not in text
    line = json.loads(text)
    assert list(line) == KEYS
    assert line["value"] == 1.0
    assert line["peer_value"] == 1.0
    assert line["ratio"] == 1.0
    assert line["goal"] == "ratio >= 0.8"
    assert line["ok"] is True
    assert line["runs"] == 3
    assert line["spread"] == 0.3346


@pytest.mark.parametrize(("better", "ratio"), [("higher", 0.25), ("lower", 4.0)])
def test_more_of_the_ratio_is_better_either_way(better: Better, ratio: float) -> None:
    assert Case("x", "y", "s", better, "peer").line([1.0], [4.0]).ratio == ratio


@pytest.mark.parametrize(
    ("goal", "better", "words", "ok"),
    [
        (Goal("value", 0.5), "lower", "value <= 0.5", True),
        (Goal("value", 0.4), "lower", "value <= 0.4", False),
        (Goal("value", 0.5), "higher", "value >= 0.5", True),
        (Goal("value", 0.6), "higher", "value >= 0.6", False),
        (Goal("ratio", 2.0), "lower", "ratio >= 2", True),
        (Goal("ratio", 2.1), "lower", "ratio >= 2.1", False),
        (Goal("ratio", 0.5), "higher", "ratio >= 0.5", True),
        (Goal("ratio", 0.6), "higher", "ratio >= 0.6", False),
    ],
)
def test_the_goal_decides(goal: Goal, better: Better, words: str, ok: bool) -> None:
    line = Case("x", "y", "s", better, "peer", goal).line([0.5], [1.0])
    assert line.goal == words
    assert line.ok is ok


def test_what_is_printed_is_rounded_and_what_is_judged_is_not() -> None:
    line = Case("x", "y", "s", "lower", goal=Goal("value", 0.5)).line([0.500001])
    assert json.loads(line.to_json())["value"] == 0.5
    assert not line.ok


def test_without_a_peer_there_is_no_ratio() -> None:
    line = Case("x", "y", "s", "lower").line([0.0, 0.0])
    assert (line.peer, line.peer_value, line.ratio, line.goal) == (None, None, None, None)
    assert line.ok
    assert line.spread == 0.0


def test_a_goal_for_a_ratio_needs_a_peer() -> None:
    with pytest.raises(ValueError, match="not measured"):
        Case("x", "y", "s", "lower", goal=Goal("ratio", 1.0)).line([1.0])


def test_measures_take_turns_and_warm_up_first() -> None:
    order: list[str] = []

    async def measure(name: str) -> int:
        order.append(name)
        return len(order)

    found = run(interleave(2, lambda: measure("ours"), lambda: measure("peer")))
    assert order == ["ours", "peer"] * 3
    assert found == [[3, 5], [4, 6]]
