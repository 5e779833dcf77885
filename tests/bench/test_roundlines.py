"""Rounds become lines: which peer stands beside what, and where the goals are."""

from __future__ import annotations

import pytest

from bench.case import Case, Line
from bench.round import FULL, QUICK, need
from bench.roundlines import BESIDE, Found, Size, lines, together
from bench.runs import Run

FOUR = Size(4, 10_000_000)


def took(seconds: float, num_results: int = 1, has_succeeded: bool = True) -> list[Run]:
    return [Run(seconds, seconds, int(3e6), has_succeeded, num_results, int(61e6), 0.02, int(1e8))]


def found(codec: str, **hivemind: float) -> Found:
    made = Found(ours={codec: took(1.0)}, errors={codec: 0.011}, gloo={codec: took(0.8)}, forming=took(0.1))
    for name, seconds in hivemind.items():
        made.hivemind[name] = took(seconds, num_results=4)
        made.hivemind_errors[name] = 0.03
    return made


def by_case(size: Size, measured: Found, is_slow: bool = False) -> dict[str, Line]:
    return {f"{line.case}|{line.peer}": line for line in lines(size, measured, is_slow)}


def test_int8_is_held_to_a_fifth_of_hivemind_and_to_gloo() -> None:
    shown = by_case(FOUR, found("int8", UNIFORM_8BIT=5.5, BLOCKWISE_8BIT=4.0))
    name = "4 siblings, 10 M, int8"
    assert (shown[f"{name}|hivemind, UNIFORM_8BIT"].goal, shown[f"{name}|hivemind, UNIFORM_8BIT"].ok) == (
        "ratio >= 5",
        True,
    )
    assert shown[f"{name}|hivemind, BLOCKWISE_8BIT"].goal is None
    gloo = shown[f"{name}|gloo all_reduce, fp32"]
    assert gloo.ratio == pytest.approx(0.8)
    assert gloo.ok, "within 1.3 times"
    assert shown[f"{name}: CPU of all|hivemind, UNIFORM_8BIT"].goal == "ratio >= 3"
    assert shown[f"{name}: relative error of the average|hivemind, UNIFORM_8BIT"].value == pytest.approx(1.1)
    assert shown[f"{name}: relative error of the average|hivemind, UNIFORM_8BIT"].ok
    ready = shown[f"{name}: all ready to first byte|None"]
    assert ready.value == pytest.approx(20.0)
    assert ready.goal is None
    forming = shown["4 siblings, few elements: all ready to first byte|None"]
    assert forming.value == pytest.approx(20.0)
    assert forming.ok
    assert shown[f"{name}: largest growth of a process in a round|None"].value == pytest.approx(2.5)
    equal = shown[f"{name}: rounds that succeed, with equal bits|hivemind, UNIFORM_8BIT"]
    assert (equal.value, equal.peer_value, equal.ratio, equal.ok) == (1.0, 0.0, None, True)


def test_what_all_send_stands_beside_the_least_of_an_all_reduce() -> None:
    sent = by_case(FOUR, found("int8"))["4 siblings, 10 M, int8: sent by all|least of an all-reduce, computed"]
    assert sent.peer_value == pytest.approx(2 * 3 * 10 * (1 + 4 / 256), rel=1e-3)
    assert sent.ratio == pytest.approx(1.0, abs=0.01)


def test_without_hivemind_there_are_no_goals_beside_it() -> None:
    shown = by_case(FOUR, found("none"))
    assert all("hivemind" not in key for key in shown)
    assert shown["4 siblings, 10 M, none|gloo all_reduce, fp32"].goal is None


def test_codecs_without_a_peer_are_shown_alone() -> None:
    measured = found("int2")
    measured.gloo.clear()
    assert by_case(FOUR, measured)["4 siblings, 10 M, int2|None"].value == 1.0


def test_over_slow_links_int8_is_held_to_a_third_of_gloo() -> None:
    shown = by_case(FOUR, found("int8", UNIFORM_8BIT=2.0), is_slow=True)
    gloo = shown["100 Mbit/s, 4 siblings, 10 M, int8|gloo all_reduce, fp32"]
    assert (gloo.goal, gloo.ok) == ("ratio >= 3", False)
    assert not any("CPU" in key or "error" in key for key in shown)


def test_rounds_that_fail_and_bits_that_differ_are_counted() -> None:
    ours = [*took(1.0), *took(1.0, has_succeeded=False), *took(1.0, num_results=2), *took(1.0)]
    succeed, equal = together(Case("round", "x", "share", "higher"), ours, [])
    assert (succeed.case, succeed.value, succeed.runs, succeed.ok) == ("x", 0.75, 4, False)
    assert (equal.case, equal.value) == ("x, with equal bits", 0.5)


def test_the_full_plan_measures_all_sizes_with_all_codecs_and_the_quick_one_is_small() -> None:
    assert {(size.siblings, size.elements // 1_000_000) for size in FULL.sizes} == {
        (siblings, millions) for siblings in (2, 4, 8) for millions in (10, 50)
    }
    assert set(FULL.codecs) == set(BESIDE)
    assert set(QUICK.codecs) <= set(FULL.codecs)
    assert max(size.elements for size in QUICK.sizes) == 10_000_000


def test_the_largest_size_fits_into_24_gib_one_group_after_the_other() -> None:
    ours, theirs = need(Size(8, 50_000_000))
    assert max(ours, theirs) < 20 * 2**30
