"""Ramps are compared at equal steps, each beside none."""

from __future__ import annotations

import pytest

from bench import ramp
from bench.ramp import FULL, QUICK, Plan, arm, lines, steps
from bench.results import Result, Results


def results_of(plan: Plan) -> Results:
    results = Results(None)
    for outer in plan.outer:
        for rounds in plan.rounds:
            for length in plan.ramps:
                for seed in plan.seeds:
                    one, loss = arm(outer, length), 3.0 - length / 100 - rounds / 1000 + seed / 10
                    number = steps(rounds)
                    described = one.described(seed, number)
                    results.add(Result(one.name, seed, number, described, loss, 1e6, rounds, 135_000, 1.0))
    return results


def test_each_ramp_stands_beside_none() -> None:
    shown = list(lines(FULL, results_of(FULL)))
    assert len(shown) == len(FULL.outer) * len(FULL.rounds) * (len(FULL.ramps) - 1)
    first = shown[0]
    assert first.case == "pydocs, 20 rounds, as it comes, 3 seeds, ramp of 10"
    assert first.value == pytest.approx(3.08)
    assert first.peer_value == pytest.approx(3.18)


def test_runs_are_as_long_with_a_ramp_as_without() -> None:
    assert [steps(rounds) for rounds in (20, 200)] == [260, 2060]
    with_one, without = arm("outer 0.7/0.9", 10).sync, arm("outer 0.7/0.9", 0).sync
    assert with_one is not None
    assert without is not None
    assert (with_one.ramp_rounds, without.ramp_rounds) == (10, 0)
    assert with_one.model_copy(update={"ramp_rounds": 0}) == without
    assert with_one.outer_momentum == 0.9


def test_the_quick_bench_is_a_part_of_the_whole() -> None:
    assert set(QUICK.rounds) < set(FULL.rounds)
    assert set(QUICK.outer) < set(ramp.OUTER)
