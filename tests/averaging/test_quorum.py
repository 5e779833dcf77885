from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import rendezvous
from distqat.averaging.quorum import Quorum
from distqat.ids import PeerId
from tests.averaging.words import round_ref

PEOPLE = [PeerId(name) for name in ("alice", "bob", "carol", "dave", "erin", "frank")]
SUBSETS = st.sets(st.sampled_from(PEOPLE))


def decides(base: set[PeerId], voices: set[PeerId], gone: set[PeerId], first: PeerId | None) -> bool:
    """The rule, said as plainly as possible."""
    more = [peer for peer in base if peer in voices]
    less = [peer for peer in base if peer not in voices]
    is_more = len(more) > len(less) or (len(more) == len(less) and (not base or first in more))
    return is_more or not [peer for peer in less if peer not in gone]


@given(SUBSETS, SUBSETS, SUBSETS)
def test_against_the_plain_rule(base: set[PeerId], voices: set[PeerId], gone: set[PeerId]) -> None:
    quorum = Quorum.of(round_ref(3), base)
    order = rendezvous.order(round_ref(3), base)
    assert quorum.has(voices, gone) == decides(base, voices, gone, order[0] if order else None)


@pytest.mark.parametrize("size", range(1, 7))
def test_two_groups_that_decide_share_somebody_who_lives(size: int) -> None:
    """Of all pairs of groups, whoever is gone: they share a sibling, or whoever was in one of them is gone."""
    base = PEOPLE[:size]
    quorum = Quorum.of(round_ref(1), base)
    groups = [set(some) for count in range(size + 1) for some in itertools.combinations(base, count)]
    for gone in groups:
        able = [group for group in groups if quorum.has(group - gone, gone)]
        # The first group decided when nobody was gone yet.
        for first, second in itertools.product([group for group in groups if quorum.has(group, ())], able):
            assert first & (second - gone) or first <= gone


def test_a_half_decides_if_the_first_is_in_it() -> None:
    quorum = Quorum.of(round_ref(0), PEOPLE[:2])
    assert quorum.first is not None
    [other] = set(PEOPLE[:2]) - {quorum.first}
    assert quorum.has({quorum.first}, ())
    assert not quorum.has({other}, ())
    assert quorum.has({other}, {quorum.first})


def test_before_the_first_round_anybody_decides() -> None:
    assert Quorum.of(round_ref(0), ()).has((), ())


def test_strangers_do_not_count() -> None:
    quorum = Quorum.of(round_ref(0), PEOPLE[:3])
    assert not quorum.has(PEOPLE[3:], ())
    assert quorum.missing([PEOPLE[0], PEOPLE[4]], [PEOPLE[1]]) == (PEOPLE[2],)
