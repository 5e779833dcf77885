from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging.form import CatchUp, Decision, Form, Others, Settle, Skip, Start, Stuck, Wait
from distqat.averaging.group import Contact, Doubt, Join
from distqat.averaging.quorum import Quorum
from distqat.averaging.waits import LEAST_PATIENCE, LEAST_QUIET, Patience
from distqat.ids import Endpoint, PeerId
from tests.averaging.words import join, round_ref

ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")
LONGEST = 10.0


NOBODY = Quorum()


def decide(
    form: Form,
    expected: Collection[PeerId],
    now: float,
    engaged: Collection[PeerId] = (),
    quorum: Quorum = NOBODY,
    **others: Collection[PeerId],
) -> Decision:
    others.setdefault("absent", others.get("gone", ()))
    return form.decide(Others(expected, engaged=engaged, **others), quorum, now)


@pytest.fixture
def form() -> Form:
    """A round that alice leads."""
    return Form(ALICE, Patience(LONGEST))


def test_nothing_is_decided_before_the_leader_has_joined(form: Form) -> None:
    form.join(join("bob"), 0.0)
    assert decide(form, {BOB}, 100.0) == Wait(math.inf, (ALICE,))


def test_it_starts_as_soon_as_all_live_siblings_have_joined(form: Form) -> None:
    form.join(join("bob"), 0.0)
    form.join(join("alice"), 0.1)
    assert decide(form, {BOB, CAROL}, 0.2) == Wait(LONGEST, (CAROL,))
    form.join(join("carol"), 0.3)
    assert decide(form, {BOB, CAROL}, 0.3) == Start((join("bob"), join("alice"), join("carol")))


def test_a_sibling_that_is_lost_is_not_waited_for(form: Form) -> None:
    form.join(join("alice"), 0.0)
    assert isinstance(decide(form, {BOB}, 0.0), Wait)
    assert decide(form, (), 0.1) == Start((join("alice"),))


def test_a_sibling_that_left_is_waited_for_again(form: Form) -> None:
    form.join(join("alice"), 0.0)
    form.join(join("bob"), 0.0)
    form.leave(BOB)
    assert decide(form, {BOB}, 1.0) == Wait(LONGEST, (BOB,))
    form.leave(CAROL)


def test_it_starts_without_a_live_sibling_at_the_deadline(form: Form) -> None:
    form.join(join("bob"), 5.0)
    form.join(join("alice"), 6.0)
    assert isinstance(decide(form, {BOB, CAROL}, 14.9), Wait)
    assert decide(form, {BOB, CAROL}, 15.0) == Start((join("bob"), join("alice")))
    # Somebody was missed, so the next wait is not shorter.
    assert form.patience.seconds() == LONGEST


def test_the_deadline_is_learned(form: Form) -> None:
    for _ in range(4):
        form.join(join("alice"), 0.0)
        form.join(join("bob"), 2.0)
        assert isinstance(decide(form, {BOB}, 2.0), Start)
        form.clear()
    form.join(join("alice"), 100.0)
    assert decide(form, {BOB}, 100.0) == Wait(102.0, (BOB,))


def test_a_round_without_siblings_teaches_nothing(form: Form) -> None:
    form.join(join("alice"), 0.0)
    assert isinstance(decide(form, (), 0.0), Start)
    assert form.patience.seconds() == LONGEST


def test_it_never_starts_while_a_sibling_takes_part_elsewhere(form: Form) -> None:
    form.join(join("alice"), 0.0)
    assert decide(form, {BOB}, 1000.0, engaged={BOB}) == Wait(math.inf, (BOB,))
    assert isinstance(decide(form, {BOB}, 1000.0), Start)


def test_siblings_that_answer_nothing_are_waited_for_briefly(form: Form) -> None:
    form.patience.note(0.01)
    for name in ("alice", "bob"):
        form.join(join(name), 0.0)
    wait = LEAST_QUIET
    assert decide(form, {BOB, CAROL}, 0.0, quorum=THREE, quiet={CAROL}) == Wait(wait, (CAROL,))
    assert isinstance(decide(form, {BOB, CAROL}, wait, quorum=THREE), Wait), "it answers"
    assert decide(form, {BOB, CAROL}, wait, quorum=THREE, quiet={CAROL}) == Start((join("alice"), join("bob")))
    # Nothing is learned from it about those who do answer.
    assert form.patience.seconds() == LEAST_PATIENCE


def test_before_the_first_round_they_are_waited_for_like_all_others(form: Form) -> None:
    form.patience.note(0.01)
    form.join(join("alice"), 0.0)
    assert decide(form, {BOB}, LEAST_QUIET, quiet={BOB}) == Wait(LEAST_PATIENCE, (BOB,))


def first_of(*peers: PeerId) -> PeerId:
    """Whose half wins a tie."""
    first = Quorum.of(round_ref(0), peers).first
    assert first is not None
    return first


def test_before_the_first_round_a_majority_of_all_that_the_directory_has_begins(form: Form) -> None:
    form.join(join("alice"), 0.0)
    three = {BOB, CAROL, PeerId("dave")}
    # They have been asked in vain, so they are not expected any more.
    assert decide(form, (), 0.1, live=three, silent=three) == Stuck(tuple(sorted(three)))
    form.join(join("bob"), 0.2)
    begins = first_of(ALICE, *three) in (ALICE, BOB)
    assert isinstance(decide(form, (), 0.2, live=three, silent=three), Start if begins else Stuck)
    form.join(join("carol"), 0.3)
    assert isinstance(decide(form, (), 0.3, live=three, silent=three), Start)


@pytest.mark.parametrize("name", ["bob", "carol", "dave", "erin", "frank"])
def test_of_two_that_are_cut_off_from_the_start_one_begins(name: str) -> None:
    other = PeerId(name)
    begun = []
    for leader, missing in ((ALICE, other), (other, ALICE)):
        form = Form(leader, Patience(LONGEST))
        form.join(join(leader), 0.0)
        decision = decide(form, (), 0.1, live={missing}, silent={missing})
        begun += [leader] if isinstance(decision, Start) else []
        assert isinstance(decision, Start) or decision == Stuck((missing,))
    assert begun == [first_of(ALICE, other)]


def test_it_begins_without_those_who_are_dead(form: Form) -> None:
    form.join(join("alice"), 0.0)
    three = {BOB, CAROL, PeerId("dave")}
    assert isinstance(decide(form, (), 0.1, live=three, silent=three, gone=three), Start)
    # One who lives again may have begun in its new life, of which its grave knows nothing.
    back = decide(form, (), 0.1, live=three, silent=three, gone=three, absent={BOB, CAROL})
    assert back == Stuck((PeerId("dave"),))


def test_who_answers_but_does_not_come_is_not_cut_off_and_does_not_keep_a_run_from_beginning(form: Form) -> None:
    form.join(join("alice"), 0.0)
    three = {BOB, CAROL, PeerId("dave")}
    assert decide(form, three, 0.1, live=three) == Wait(LONGEST, tuple(sorted(three)))
    late = 2 * LONGEST
    assert isinstance(decide(form, three, late, live=three), Start)
    assert isinstance(decide(form, {BOB, CAROL}, late, live=three, silent={PeerId("dave")}), Start)
    assert isinstance(decide(form, (), late, live=three, silent=three), Stuck)


def test_without_those_who_decide_it_gives_up_as_soon_if_they_answer_nothing(form: Form) -> None:
    form.patience.note(0.01)
    form.join(join("alice"), 0.0)
    quiet = {BOB, CAROL}
    assert decide(form, quiet, 0.0, quorum=THREE, quiet=quiet) == Wait(LEAST_QUIET, (BOB, CAROL))
    assert decide(form, quiet, LEAST_QUIET, quorum=THREE, quiet=quiet) == Stuck((BOB, CAROL))
    # Those of the base that the directory has lost are asked as well.
    assert decide(form, (), 0.0, quorum=THREE, quiet=quiet) == Wait(LEAST_QUIET, (BOB, CAROL))


def test_who_is_held_up_is_not_waited_for(form: Form) -> None:
    form.patience.note(0.01)
    for name in ("alice", "bob"):
        form.join(join(name), 0.0)
    assert decide(form, {CAROL}, 0.0, quorum=THREE, held_up={CAROL}) == Start((join("alice"), join("bob")))
    # It is no sign that others are slow, or that silence is.
    assert form.patience.seconds() == LEAST_PATIENCE
    form.leave(BOB)
    others = {BOB, CAROL}
    assert decide(form, others, 0.0, quorum=THREE, held_up=others) == Stuck((BOB, CAROL))
    # Those who only are silent are waited for as ever, and so is everybody before the first round.
    assert decide(form, others, 0.0, quorum=THREE, held_up={BOB}, quiet={CAROL}) == Wait(LEAST_QUIET, (BOB, CAROL))
    assert decide(form, {BOB}, 0.0, held_up={BOB}) == Wait(LEAST_PATIENCE, (BOB,))


def test_who_missed_a_round_catches_up_at_once(form: Form) -> None:
    form.join(join("alice", number=4), 0.0)
    form.join(join("bob", number=3, digest="old"), 0.0)
    assert decide(form, {BOB, CAROL}, 0.0) == CatchUp((BOB,), join("alice", number=4))


def test_a_leader_that_missed_a_round_catches_up_itself(form: Form) -> None:
    form.join(join("alice", number=3, digest="old"), 0.0)
    form.join(join("bob", number=4), 0.0)
    form.join(join("carol", number=4), 0.0)
    assert decide(form, {BOB, CAROL}, 0.0) == CatchUp((ALICE,), join("bob", number=4))


def test_of_different_anchors_that_of_most_counts(form: Form) -> None:
    form.join(join("alice", digest="mine"), 0.0)
    form.join(join("bob", digest="ours"), 0.0)
    form.join(join("carol", digest="ours"), 0.0)
    assert decide(form, {BOB, CAROL}, 0.0) == CatchUp((ALICE,), join("bob", digest="ours"))


def test_of_two_different_anchors_the_leaders_counts(form: Form) -> None:
    form.join(join("bob", digest="his"), 0.0)
    form.join(join("alice", digest="mine"), 0.0)
    decision = decide(form, {BOB}, 0.0)
    assert decision == CatchUp((BOB,), join("alice", digest="mine"))
    # He comes again with the right one, and is waited for although the first deadline may be over.
    form.leave(BOB)
    assert decide(form, {BOB}, LONGEST - 0.1) == Wait(LONGEST, (BOB,))
    form.join(join("bob", samples=0, digest="mine"), 1.0)
    assert isinstance(decide(form, {BOB}, 1.0), Start)


def test_nobody_to_judge_anchors_before_all_are_there(form: Form) -> None:
    form.join(join("alice", digest="mine"), 0.0)
    form.join(join("bob", digest="ours"), 0.0)
    assert isinstance(decide(form, {BOB, CAROL}, 0.0), Wait)


def test_nothing_happens_when_nobody_has_trained(form: Form) -> None:
    form.join(join("alice", samples=0), 0.0)
    form.join(join("bob", samples=0), 0.0)
    assert decide(form, {BOB}, 0.0) == Skip((ALICE, BOB), join("alice", samples=0))


THREE = Quorum.of(round_ref(), (ALICE, BOB, CAROL))


def test_it_does_not_start_without_those_who_decide(form: Form) -> None:
    quorum = Quorum.of(round_ref(), (ALICE, BOB, CAROL))
    form.join(join("alice"), 0.0)
    assert decide(form, (), 0.0, quorum=quorum) == Wait(LONGEST, (BOB, CAROL))
    assert decide(form, (), 0.0, quorum=quorum, silent={CAROL}) == Wait(LONGEST, (BOB,))
    assert decide(form, (), 0.0, quorum=quorum, silent={BOB, CAROL}) == Stuck((BOB, CAROL))
    assert decide(form, (), LONGEST, quorum=quorum) == Stuck((BOB, CAROL))
    assert isinstance(decide(form, (), 0.0, quorum=quorum, gone={BOB, CAROL}), Start)
    form.join(join("bob"), 0.0)
    assert isinstance(decide(form, (), 0.0, quorum=quorum, silent={CAROL}), Start)


def test_who_is_here_without_a_voice_counts_as_gone(form: Form) -> None:
    form.join(join("alice"), 0.0)
    for name in ("bob", "carol"):
        form.join(replace(join(name), has_voice=False), 0.0)
    assert isinstance(decide(form, (), 0.0, quorum=THREE), Start)


def test_as_long_as_a_majority_is_gone_everybody_who_lives_must_be_here(form: Form) -> None:
    """One who is gone may have committed the round, and told a newcomer."""
    dave = PeerId("dave")
    form.join(join("alice"), 0.0)
    assert decide(form, (), 0.0, quorum=THREE, gone={BOB, CAROL}, live={dave}) == Wait(LONGEST, (dave,))
    assert decide(form, (), 0.0, quorum=THREE, gone={BOB, CAROL}, live={dave}, silent={dave}) == Stuck((dave,), True)
    form.join(join("dave"), 0.0)
    assert isinstance(decide(form, (), 0.0, quorum=THREE, gone={BOB, CAROL}, live={dave}), Start)


def test_of_those_who_are_gone_whoever_lives_again_must_be_here_too(form: Form) -> None:
    """It decides nothing any more, but may have learned of a commit in its new life."""
    form.join(join("alice"), 0.0)
    known: dict[str, Collection[PeerId]] = {"gone": {BOB, CAROL}, "live": {BOB}, "absent": {CAROL}}
    assert decide(form, (), 0.0, quorum=THREE, **known) == Wait(LONGEST, (BOB,))
    assert decide(form, (), 0.0, quorum=THREE, **known, silent={BOB}) == Stuck((BOB,), True)


def test_so_must_those_who_were_in_an_attempt_that_nobody_knows_of(form: Form) -> None:
    dave = PeerId("dave")
    doubt = Doubt("", (Contact(ALICE, Endpoint("alice", 1)), Contact(dave, Endpoint("dave", 1))))
    form.join(replace(join("alice"), doubt=doubt), 0.0)
    assert decide(form, (), 0.0, quorum=THREE, gone={BOB, CAROL}, silent={dave}) == Stuck((dave,), True)
    assert isinstance(decide(form, (), 0.0, quorum=THREE, gone={BOB, CAROL, dave}), Start)


def test_what_is_in_doubt_comes_before_a_new_attempt(form: Form) -> None:
    members = tuple(Contact(peer, Endpoint(peer, 1)) for peer in (ALICE, BOB, CAROL))
    form.join(replace(join("alice", samples=0), doubt=Doubt("x", members)), 0.0)
    assert decide(form, (), 0.0, quorum=THREE, gone={BOB}, silent={CAROL}) == Stuck((CAROL,), True)
    form.join(replace(join("bob"), doubt=Doubt("x", members)), 0.0)
    decision = decide(form, (), 0.0, quorum=THREE)
    assert isinstance(decision, Settle)
    assert decision.digest == "x"


def tried(peer: PeerId, digest: str, *members: PeerId) -> Join:
    """A sibling that was in an attempt of which it has not heard what became."""
    return replace(join(peer), doubt=Doubt(digest, tuple(Contact(one, Endpoint(one, 1)) for one in members)))


@pytest.mark.parametrize("live", [(BOB, CAROL), ()], ids=["known", "dropped by the directory"])
def test_a_first_round_is_not_settled_by_one_who_is_cut_off(form: Form, live: tuple[PeerId, ...]) -> None:
    """Their leader may have given this attempt up, and begun again with the third."""
    three, away = (ALICE, BOB, CAROL), (BOB, CAROL)
    form.join(tried(ALICE, "x", *three), 0.0)
    assert decide(form, (), 0.1, live=live, silent=away, quiet=away) == Stuck(away, True)
    dead = decide(form, (), 0.1, live=live, silent=away, quiet=away, gone=away)
    assert dead == Settle((tried(ALICE, "x", *three),), "x"), "nobody else can have begun"
    form.join(tried(CAROL, "x", *three), 0.2)
    assert isinstance(decide(form, (), 0.2, live=live, silent=away, quiet=away), Settle)


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
        decision = decide(form, expected, now)
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
