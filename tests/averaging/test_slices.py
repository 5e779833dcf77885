from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import slices
from distqat.averaging.group import Group
from distqat.errors import MessageError
from tests.averaging.words import join


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_every_element_once_and_equal_but_for_one(num_elements: int, parts: int) -> None:
    cut = slices.cut(num_elements, parts)
    assert [begin for begin, _ in cut] == [0, *(end for _, end in cut[:-1])]
    assert cut[-1][1] == num_elements
    lengths = {end - begin for begin, end in cut}
    assert len(cut) == parts
    assert max(lengths) - min(lengths) <= 1


@given(st.permutations(["carol", "alice", "bob"]))
def test_who_came_first_does_not_matter(names: list[str]) -> None:
    group = slices.assign("x", [join(name) for name in names], 10)
    assert [member.peer for member in group.members] == ["alice", "bob", "carol"]
    assert [(member.begin, member.end) for member in group.members] == [(0, 3), (3, 6), (6, 10)]


def test_a_group_is_checked_by_its_members() -> None:
    alice, bob = join("alice", samples=3), join("bob", samples=0)
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
        ("does not have", slices.assign("x", [bob], 10)),
        ("nobody contributes", slices.assign("x", [replace(alice, samples=0), bob], 10)),
    ]
    for reason, broken in wrong:
        mine = replace(alice, samples=0) if reason == "nobody contributes" else alice
        with pytest.raises(MessageError, match=reason):
            slices.check(broken, mine)
