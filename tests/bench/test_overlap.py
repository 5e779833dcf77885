"""What the overlap bench makes of the moments it has noted."""

from __future__ import annotations

import pytest

from bench.case import Goal
from bench.overlap import SYNC, Pass, lines, rate
from distqat.averaging.phases import phase


def test_steps_count_by_their_part_in_a_round() -> None:
    # Steps of 1, 2 and 4 seconds; a round from the middle of the first to a quarter of the last.
    moments = [10.0, 11.0, 13.0, 17.0]
    assert rate(moments, [(10.5, 14.0)]) == pytest.approx((0.5 + 1 + 0.25) / 3.5)
    assert rate(moments, [(10.0, 11.0), (13.0, 17.0)]) == pytest.approx(2 / 5)
    assert rate(moments, []) == 0.0


def test_lines_compare_passes_with_rounds_to_those_without() -> None:
    beside = [[Pass(1.9, 3, 1.5, 0.02), Pass(1.7, 3, 2.5, 0.04)]]
    alone = [[Pass(2.0, 1, 9.0, 0.01), Pass(2.0, 1, 9.0, 0.01)]]
    steps, seconds, stall = lines("here", [beside, alone], Goal("ratio", 0.95))
    assert steps.value == pytest.approx(1.8)
    assert steps.ratio == pytest.approx(0.9)
    assert (steps.peer_value, steps.ok) == (2.0, False)
    assert seconds.value == 2.0
    assert (stall.value, stall.peer_value) == (40.0, 10.0)


def test_nearly_all_steps_go_on_beside_a_round() -> None:
    how = phase(0, SYNC)
    assert (how.steps, how.overlap) == (9, 8)
