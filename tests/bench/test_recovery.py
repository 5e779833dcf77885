"""Percentiles of seconds, and what a swarm is told for each kind of failure."""

from __future__ import annotations

from bench.recovery import KILLS, lines


def test_percentiles_and_their_goals() -> None:
    found = lines(KILLS[0], [0.5, 0.2, 4.0])
    assert [line.value for line in found] == [0.5, 4.0, 4.0]
    assert [line.ok for line in found] == [True, True, False]
    assert found[0].case == "SIGKILL, a warm spare, p50 of 3 kills"


def test_a_cold_spare_follows_nobody_and_has_a_donor() -> None:
    warm, cold, stopped = KILLS
    assert (warm.settings()["plan.followers"], warm.pipelines) == ("true", 1)
    assert (cold.settings()["plan.followers"], cold.pipelines) == ("false", 2)
    assert stopped.settings()["lease.min"] == "3.0"
