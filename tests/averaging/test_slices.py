from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.averaging import slices
from distqat.averaging.group import Group, Rates
from distqat.errors import MessageError
from distqat.ids import PeerId, PipelineId, StepRef
from tests.averaging.words import join

RATES = st.lists(st.floats(1e4, 1e9), min_size=1, max_size=16)


def slowest(parts: Sequence[float], rates: Sequence[float]) -> float:
    """When the last link has carried its share of one element for each byte per second."""
    number = len(parts)
    return max((1 + part * (number - 2)) / rate for part, rate in zip(parts, rates, strict=True))


def bisected(rates: Sequence[float]) -> list[float]:
    """The shares of the shortest time in which all are given away, found by halving."""
    number, low, high = len(rates), 0.0, 2 * len(rates) / min(rates)
    for _ in range(200):
        time = (low + high) / 2
        given_away = sum(max(0.0, time * rate - 1) for rate in rates) / (number - 2)
        low, high = (low, time) if given_away >= 1 else (time, high)
    return [max(0.0, high * rate - 1) / (number - 2) for rate in rates]


@settings(deadline=None)
@given(RATES)
def test_shares_are_those_of_the_naive_search(rates: list[float]) -> None:
    parts = slices.shares(rates)
    assert sum(parts) == pytest.approx(1.0)
    assert min(parts) >= 0
    if len(rates) > 2:
        assert parts == pytest.approx(bisected(rates), abs=1e-6)


@settings(deadline=None)
@given(RATES, st.integers(0, 15), st.integers(0, 15), st.floats(0.001, 0.2))
def test_moving_a_share_to_another_makes_nothing_faster(
    rates: list[float], giver: int, taker: int, share: float
) -> None:
    parts = slices.shares(rates)
    giver, taker = giver % len(parts), taker % len(parts)
    share = min(share, parts[giver])
    others = list(parts)
    others[giver] -= share
    others[taker] += share
    assert slowest(others, rates) >= slowest(parts, rates) * (1 - 1e-9)


def test_a_slow_link_owns_less_and_a_very_slow_one_nothing() -> None:
    assert slices.shares([100.0, 100.0, 100.0, 100.0]) == [0.25] * 4
    # T (r1 + r2 + r3 + r4) = M - 2 + 4 with r = 2, 2, 2, 1: T = 6 / 7, x = (T r - 1) / 2; the last gets (6/7 - 1) < 0.
    assert slices.shares([2.0, 2.0, 2.0, 1.0]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])
    # r = 4, 4, 4, 3: T = 6 / 15, x = 0.3, 0.3, 0.3, 0.1.
    assert slices.shares([4.0, 4.0, 4.0, 3.0]) == pytest.approx([0.3, 0.3, 0.3, 0.1])
    # Of two, each link carries everything once, however they share.
    assert slices.shares([100.0, 1.0]) == [0.5, 0.5]


def test_who_is_not_known_counts_as_the_fastest_that_is() -> None:
    assert slices.shares([0.0, 4.0, 4.0, 3.0]) == pytest.approx([0.3, 0.3, 0.3, 0.1])
    assert slices.shares([0.0, 0.0, 0.0]) == pytest.approx([1 / 3] * 3)


@settings(deadline=None)
@given(st.integers(0, 10_000), RATES, st.sampled_from([1, 64, 256]))
def test_every_element_once_and_whole_blocks(num_elements: int, rates: list[float], block: int) -> None:
    parts = slices.shares(rates)
    cut = slices.cut(num_elements, parts, block)
    assert len(cut) == len(parts)
    assert cut[0][0] == 0
    assert cut[-1][1] == num_elements
    assert all(end == begin for (_, end), (begin, _) in pairwise(cut))
    assert all(begin <= end for begin, end in cut)
    for (begin, end), part in zip(cut, parts, strict=True):
        assert begin % block == 0 or begin == num_elements
        assert abs(end - begin - part * num_elements) <= 2 * block


@settings(deadline=None)
@given(st.permutations(["carol", "alice", "bob"]))
def test_who_came_first_does_not_matter(names: list[str]) -> None:
    group = slices.assign("x", [join(name) for name in names], 10)
    assert [member.peer for member in group.members] == ["alice", "bob", "carol"]
    assert [(member.begin, member.end) for member in group.members] == [(0, 3), (3, 6), (6, 10)]


def test_a_group_has_what_its_members_said() -> None:
    rates = {"a": Rates(100, 4), "b": Rates(4, 0), "c": Rates(0, 4), "d": Rates(3, 9)}
    joins = [replace(join(name), norm=2.0, rates=rate, elements=256_000) for name, rate in rates.items()]
    group = slices.assign("x", joins, 256_000, "int8", {PeerId("b"): 0.5})
    assert group.codec == "int8"
    assert [member.factor for member in group.members] == [1.0, 0.5, 1.0, 1.0]
    assert {member.norm for member in group.members} == {2.0}
    # The slower direction counts: 4, 4, 4 and 3.
    assert [member.elements for member in group.members] == [76_800, 76_800, 76_800, 25_600]
    for request in joins:
        slices.check(group, request)


def test_a_lone_member_sends_nothing_and_needs_no_codec() -> None:
    assert slices.assign("x", [join("alice")], 10, "int8").codec == "none"


def test_a_group_is_checked_by_its_members() -> None:
    alice, bob = (replace(join(name, samples=count), norm=3.0) for name, count in (("alice", 3), ("bob", 0)))
    group = slices.assign("x", [alice, bob], 10)
    slices.check(group, alice)
    slices.check(group, bob)
    first, second = group.members
    assert group.contributors == (first,)
    wrong = [
        ("expected", Group("x", (first, replace(second, begin=6)))),
        ("expected", Group("x", (first, replace(second, end=2)))),
        ("slices of 9", Group("x", (first, replace(second, end=9)))),
        ("in order", Group("x", (replace(first, peer=second.peer), replace(second, peer=first.peer)))),
        ("does not have", Group("x", (replace(first, samples=4), second))),
        ("without a name", Group("x", (replace(first, origins=(StepRef(PipelineId("p;1"), 1),)), second))),
        ("of 257 pipelines", Group("x", (first, replace(second, origins=(StepRef(PipelineId("p"), 1),) * 257)))),
        ("does not have", Group("x", (replace(first, norm=4.0), second))),
        ("does not have", slices.assign("x", [bob], 10)),
        ("nobody contributes", slices.assign("x", [replace(alice, samples=0), bob], 10)),
        ("unknown codec 'int9'", Group("x", group.members, "int9")),
        ("within a block of 256", Group("x", group.members, "int8")),
        ("a factor of 1.5", Group("x", (replace(first, factor=1.5), second))),
        ("a factor of 0", Group("x", (first, replace(second, factor=0.0)))),
        ("a factor of nan", Group("x", (first, replace(second, factor=float("nan"))))),
        ("norm inf", Group("x", (first, replace(second, norm=float("inf"))))),
        ("norm -1", Group("x", (first, replace(second, norm=-1.0)))),
    ]
    for reason, broken in wrong:
        mine = replace(alice, samples=0) if reason == "nobody contributes" else alice
        with pytest.raises(MessageError, match=reason):
            slices.check(broken, mine)


def test_a_contribution_may_be_left_out() -> None:
    alice, bob = replace(join("alice", samples=3), norm=3.0), join("bob")
    group = slices.assign("x", [replace(alice, samples=0), bob], 10)
    slices.check(group, alice)
