"""Which rounds are checkpoints."""

from __future__ import annotations

from distqat.roles.checkpoint.cadence import Cadence, reach
from distqat.sections import SyncSection

SYNC = SyncSection(warmup_steps=4, inner_steps=10, fragments=2)
"""A round after each step, four times, then one after five steps."""


def due(every: int, rounds: range) -> list[int]:
    cadence = Cadence(SYNC, every)
    return [number for number in rounds if cadence.is_due(number)]


def test_a_checkpoint_follows_after_so_many_steps_of_the_schedule() -> None:
    assert due(2, range(1, 7)) == [2, 4, 5, 6]
    assert due(10, range(1, 12)) == [6, 8, 10]


def test_who_joins_later_says_the_same() -> None:
    for first in range(1, 12):
        assert due(10, range(first, 12)) == [number for number in (6, 8, 10) if number >= first]


def test_none_without_a_cadence_or_a_round() -> None:
    assert due(0, range(1, 40)) == []
    assert not Cadence(SYNC, 1).is_due(0)


def test_a_round_may_be_asked_for_again() -> None:
    cadence = Cadence(SYNC, 10)
    assert cadence.is_due(8)
    assert cadence.is_due(8)
    assert cadence.is_due(6)


def test_how_far_so_many_steps_reach_back() -> None:
    # Rounds after the warm-up are five steps apart, those in it one.
    assert [reach(SYNC, 20, steps) for steps in (0, 4, 5, 40)] == [20, 20, 19, 12]
    assert [reach(SYNC, 6, steps) for steps in (10, 11, 14, 100)] == [4, 3, 0, 0]
