"""After how many faults an expert rests, and for how long."""

from __future__ import annotations

from distqat.roles.faults import FAULTS, FIRST_REST, LONGEST_REST, WINDOW, Faults


def test_many_faults_in_a_short_time_are_too_many() -> None:
    faults = Faults()
    assert [faults.add("no memory", float(now)) for now in range(FAULTS)] == [False] * (FAULTS - 1) + [True]
    assert faults.reason == "no memory"


def test_faults_that_lie_far_apart_are_borne() -> None:
    faults = Faults()
    assert not any(faults.add("no memory", now * WINDOW) for now in range(20))


def test_each_rest_is_longer_than_the_one_before_up_to_a_limit() -> None:
    faults = Faults()
    assert faults.left(5.0) == 0.0
    assert faults.rest(10.0) == FIRST_REST
    assert faults.left(11.0) == FIRST_REST - 1.0
    assert faults.left(10.0 + FIRST_REST) == 0.0
    assert faults.rest(100.0) == 2 * FIRST_REST
    for _ in range(20):
        longest = faults.rest(200.0)
    assert longest == LONGEST_REST
    # The faults from before the rest count no more.
    assert not faults.add("no memory", 300.0)
