"""Which states are checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from distqat.ids import PipelineId, StepRef
from distqat.roles.checkpoint.cadence import is_due, reach
from distqat.sections import SyncSection

SYNC = SyncSection(warmup_steps=4, inner_steps=10, fragments=2)
"""A round after each step, four times, then one after five steps."""

Steps = dict[str, int]


def cut(steps: Steps) -> tuple[StepRef, ...]:
    return tuple(StepRef(PipelineId(name), step) for name, step in sorted(steps.items()))


def due(every: int, states: Sequence[Steps]) -> list[Steps]:
    pairs = zip(({}, *states), states, strict=False)
    return [after for before, after in pairs if is_due(cut(before), cut(after), every)]


def test_a_checkpoint_follows_after_so_many_steps_of_a_pipeline() -> None:
    states = [{"a": step} for step in (1, 2, 3, 4, 9, 14, 19, 24)]
    assert due(10, states) == [{"a": 14}, {"a": 24}]
    assert due(2, states[:4]) == [{"a": 2}, {"a": 4}]
    assert due(0, states) == []


def test_a_stage_in_which_rounds_have_failed_says_the_same_of_the_later_ones() -> None:
    states = [{"a": 5 * n, "b": 5 * n + 3} for n in range(1, 20)]
    assert due(20, states) == [states[n] for n in (3, 7, 11, 15)]
    failed = [state for index, state in enumerate(states) if index not in (1, 5, 11)]
    # That of which the round has failed is made up for by the next; all others are the same.
    assert due(20, failed) == [states[n] for n in (3, 7, 12, 15)]


def test_one_pipeline_counts_for_all_and_another_when_it_is_gone() -> None:
    states = [{"a": 4, "b": 9}, {"a": 8, "b": 13}, {"a": 12, "b": 17}, {"a": 12, "b": 21}, {"a": 12, "b": 25}]
    assert due(10, states) == [states[2], states[3]]


def test_a_state_with_the_same_steps_is_none() -> None:
    assert not is_due(cut({"a": 20}), cut({"a": 20}), 10)
    assert not is_due((), (), 10)


def test_how_far_so_many_steps_reach_back() -> None:
    # Rounds after the warm-up are five steps apart, those in it one.
    assert [reach(SYNC, 20, steps) for steps in (0, 4, 5, 40)] == [20, 20, 19, 12]
    assert [reach(SYNC, 6, steps) for steps in (10, 11, 14, 100)] == [4, 3, 0, 0]
