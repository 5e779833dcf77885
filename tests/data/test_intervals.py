from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.data.intervals import IntervalSet

SIZE = 40
CHANGES = st.lists(st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, SIZE)), max_size=30)


@settings(deadline=None)
@given(CHANGES)
def test_like_a_set_of_numbers(changes: list[tuple[bool, int, int]]) -> None:
    intervals, naive = IntervalSet(), set[int]()
    for is_added, begin, end in changes:
        assert intervals.overlap(begin, end) == len(naive & set(range(begin, end)))
        if is_added:
            intervals.add(begin, end)
            naive |= set(range(begin, end))
        else:
            intervals.remove(begin, end)
            naive -= set(range(begin, end))
        assert intervals.count == len(naive)
        assert [number for number in range(-1, SIZE + 1) if number in intervals] == sorted(naive)
        assert bool(intervals) == bool(naive)
        if naive:
            assert intervals.first()[0] == min(naive)
    pieces = list(intervals)
    assert all(begin < end for begin, end in pieces)
    # Neighbours have become one, or the books of a long run would not stay small.
    assert all(before[1] < after[0] for before, after in pairwise(pieces))


def test_an_empty_one_has_no_first() -> None:
    with pytest.raises(IndexError):
        IntervalSet().first()


def test_repr() -> None:
    assert repr(IntervalSet([(4, 6), (0, 2)])) == "<IntervalSet 0-2 4-6>"
    assert repr(IntervalSet()) == "<IntervalSet empty>"
