"""What the overlap bench makes of the moments it has noted."""

from __future__ import annotations

import pytest

from bench.case import Goal
from bench.overlap import SYNC, Pass, lines, rates
from distqat.averaging.phases import phase


def test_steps_count_by_their_part_in_a_round() -> None:
    # Steps of 1, 2 and 4 seconds; a round from the middle of the first to a quarter of the last.
    moments = [10.0, 11.0, 13.0, 17.0]
    assert rates(moments, [(10.5, 14.0)]) == pytest.approx(((0.5 + 1 + 0.25) / 3.5, (0.5 + 0.75) / 3.5))
    assert rates(moments, [(10.0, 11.0), (13.0, 17.0)]) == pytest.approx((2 / 5, 1 / 2))
    assert rates(moments, []) == pytest.approx((0.0, 3 / 7))
    assert rates(moments, [(9.0, 18.0)]) == pytest.approx((3 / 7, 0.0))


def test_lines_compare_steps_beside_a_round_with_those_alone() -> None:
    found = [[Pass(1.9, 2.0, 1.5, 0.02), Pass(1.7, 2.0, 2.5, 0.04)]]
    steps, seconds, stall = lines("here", found, Goal("ratio", 0.95))
    assert steps.value == pytest.approx(1.8)
    assert steps.ratio == pytest.approx(0.9)
    assert (steps.peer_value, steps.ok) == (2.0, False)
    assert (seconds.value, stall.value) == (2.0, 40.0)


def test_nearly_all_steps_may_go_on_beside_a_round() -> None:
    how = phase(0, SYNC)
    assert how.overlap == how.steps - 1
