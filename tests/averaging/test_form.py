from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging.form import CatchUp, Form, Skip, Start, Wait
from distqat.averaging.waits import Patience
from distqat.ids import PeerId
from tests.averaging.words import join

ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")
LONGEST = 10.0


@pytest.fixture
def form() -> Form:
    """A round that alice leads."""
    return Form(ALICE, Patience(LONGEST))


def test_nothing_is_decided_before_the_leader_has_joined(form: Form) -> None:
    form.join(join("bob"), 0.0)
    assert form.decide({BOB}, (), 100.0) == Wait(math.inf, (ALICE,))


def test_it_starts_as_soon_as_all_live_siblings_have_joined(form: Form) -> None:
    form.join(join("bob"), 0.0)
    form.join(join("alice"), 0.1)
    assert form.decide({BOB, CAROL}, (), 0.2) == Wait(LONGEST, (CAROL,))
    form.join(join("carol"), 0.3)
    assert form.decide({BOB, CAROL}, (), 0.3) == Start((join("bob"), join("alice"), join("carol")))


def test_a_sibling_that_is_lost_is_not_waited_for(form: Form) -> None:
    form.join(join("alice"), 0.0)
    assert isinstance(form.decide({BOB}, (), 0.0), Wait)
    assert form.decide((), (), 0.1) == Start((join("alice"),))


def test_a_sibling_that_left_is_waited_for_again(form: Form) -> None:
    form.join(join("alice"), 0.0)
    form.join(join("bob"), 0.0)
    form.leave(BOB)
    assert form.decide({BOB}, (), 1.0) == Wait(LONGEST, (BOB,))
    form.leave(CAROL)


def test_it_starts_without_a_live_sibling_at_the_deadline(form: Form) -> None:
    form.join(join("bob"), 5.0)
    form.join(join("alice"), 6.0)
    assert isinstance(form.decide({BOB, CAROL}, (), 14.9), Wait)
    assert form.decide({BOB, CAROL}, (), 15.0) == Start((join("bob"), join("alice")))
    # Somebody was missed, so the next wait is not shorter.
    assert form.patience.seconds() == LONGEST


def test_the_deadline_is_learned(form: Form) -> None:
    for _ in range(4):
        form.join(join("alice"), 0.0)
        form.join(join("bob"), 2.0)
        assert isinstance(form.decide({BOB}, (), 2.0), Start)
        form.clear()
    form.join(join("alice"), 100.0)
    assert form.decide({BOB}, (), 100.0) == Wait(102.0, (BOB,))


def test_a_round_without_siblings_teaches_nothing(form: Form) -> None:
    form.join(join("alice"), 0.0)
    assert isinstance(form.decide((), (), 0.0), Start)
    assert form.patience.seconds() == LONGEST


def test_it_never_starts_while_a_sibling_takes_part_elsewhere(form: Form) -> None:
    form.join(join("alice"), 0.0)
    assert form.decide({BOB}, {BOB}, 1000.0) == Wait(math.inf, (BOB,))
    assert isinstance(form.decide({BOB}, (), 1000.0), Start)


def test_who_missed_a_round_catches_up_at_once(form: Form) -> None:
    form.join(join("alice", number=4), 0.0)
    form.join(join("bob", number=3, digest="old"), 0.0)
    assert form.decide({BOB, CAROL}, (), 0.0) == CatchUp((BOB,), join("alice", number=4))


def test_a_leader_that_missed_a_round_catches_up_itself(form: Form) -> None:
    form.join(join("alice", number=3, digest="old"), 0.0)
    form.join(join("bob", number=4), 0.0)
    form.join(join("carol", number=4), 0.0)
    assert form.decide({BOB, CAROL}, (), 0.0) == CatchUp((ALICE,), join("bob", number=4))


def test_of_different_anchors_that_of_most_counts(form: Form) -> None:
    form.join(join("alice", digest="mine"), 0.0)
    form.join(join("bob", digest="ours"), 0.0)
    form.join(join("carol", digest="ours"), 0.0)
    assert form.decide({BOB, CAROL}, (), 0.0) == CatchUp((ALICE,), join("bob", digest="ours"))


def test_of_two_different_anchors_the_leaders_counts(form: Form) -> None:
    form.join(join("bob", digest="his"), 0.0)
    form.join(join("alice", digest="mine"), 0.0)
    decision = form.decide({BOB}, (), 0.0)
    assert decision == CatchUp((BOB,), join("alice", digest="mine"))
    # He comes again with the right one, and is waited for although the first deadline may be over.
    form.leave(BOB)
    assert form.decide({BOB}, (), LONGEST - 0.1) == Wait(LONGEST, (BOB,))
    form.join(join("bob", samples=0, digest="mine"), 1.0)
    assert isinstance(form.decide({BOB}, (), 1.0), Start)


def test_nobody_to_judge_anchors_before_all_are_there(form: Form) -> None:
    form.join(join("alice", digest="mine"), 0.0)
    form.join(join("bob", digest="ours"), 0.0)
    assert isinstance(form.decide({BOB, CAROL}, (), 0.0), Wait)


def test_nothing_happens_when_nobody_has_trained(form: Form) -> None:
    form.join(join("alice", samples=0), 0.0)
    form.join(join("bob", samples=0), 0.0)
    assert form.decide({BOB}, (), 0.0) == Skip((ALICE, BOB), join("alice", samples=0))


PEOPLE = [PeerId(name) for name in ("alice", "bob", "carol", "dave", "erin")]


@given(
    st.lists(st.tuples(st.sampled_from(PEOPLE), st.integers(0, 2), st.integers(0, 2)), max_size=12),
    st.sets(st.sampled_from(PEOPLE[1:])),
)
def test_whatever_is_said_it_ends_in_one_group_of_one_anchor(
    said: list[tuple[PeerId, int, int]], expected: set[PeerId]
) -> None:
    """Stale siblings that come again with the reference's anchor always end in a start or in nothing to do."""
    form = Form(ALICE, Patience(LONGEST))
    form.join(join("alice"), 0.0)
    for moment, (peer, number, samples) in enumerate(said):
        form.join(join(peer, number, samples, digest=f"{number}{peer < 'c'}"), float(moment))
    now = 1000.0
    for _ in range(4):
        decision = form.decide(expected, (), now)
        if not isinstance(decision, CatchUp):
            break
        for peer in decision.peers:
            form.leave(peer)
            form.join(join(peer, decision.reference.round.number, 0, decision.reference.digest), now)
        now += LONGEST
    assert isinstance(decision, Start | Skip)
    if isinstance(decision, Start):
        assert len({(member.round.number, member.digest) for member in decision.members}) == 1
        assert ALICE in {member.peer for member in decision.members}
