"""How long a process stood still is told by its clocks, and what only took long is not taken for it."""

from __future__ import annotations

import pytest

from distqat.model.standstill import BEAT, LEAST, Standstill


def test_a_gap_without_processor_time_counts_but_for_one_beat() -> None:
    still = Standstill(10.0, 3.0)
    still.look(10.0 + BEAT, 3.1)
    assert still.seconds == 0.0
    still.look(10.0 + BEAT + 20.0, 3.1)
    assert still.seconds == pytest.approx(20.0 - BEAT)
    still.look(10.0 + 2 * BEAT + 20.0, 3.2)
    assert still.seconds == pytest.approx(20.0 - BEAT)
    still.look(10.0 + 2 * BEAT + 25.0, 3.2)
    assert still.seconds == pytest.approx(25.0 - 2 * BEAT)


def test_a_gap_that_was_computed_through_does_not_count() -> None:
    still = Standstill(0.0, 0.0)
    still.look(8.0, 7.9)
    assert still.seconds == 0.0
    # Several threads at once use more than a second a second.
    still.look(16.0, 24.0)
    assert still.seconds == 0.0


def test_a_short_gap_does_not_count() -> None:
    still = Standstill(0.0, 0.0)
    for number in range(1, 100):
        still.look(number * (BEAT + 0.9 * LEAST), 0.0)
    assert still.seconds == 0.0
