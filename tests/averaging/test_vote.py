from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import slices, vote
from distqat.averaging.group import Verdict, Vote
from distqat.ids import PeerId
from tests.averaging.words import failed, join, prepared

ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")
GROUP = slices.assign("x", [join("alice"), join("bob"), join("carol")], 10)


def verdict(votes: Iterable[Vote], gone: Iterable[PeerId] = (), is_late: bool = False) -> Verdict | None:
    """What alice decides."""
    return vote.decide(GROUP, ALICE, {ballot.peer: ballot for ballot in votes}, set(gone), is_late)


def test_it_commits_when_all_hold_the_same() -> None:
    assert verdict([prepared("alice"), prepared("bob")]) is None
    assert verdict([prepared("alice"), prepared("bob"), prepared("carol")]) == Verdict(True)


def test_another_result_is_named() -> None:
    assert verdict([prepared("alice"), prepared("bob", "other"), prepared("carol")]) == Verdict(
        False, "bob came to another result", ("bob",)
    )


def test_of_two_results_the_leaders_counts() -> None:
    group = slices.assign("x", [join("alice"), join("bob")], 10)
    votes = {BOB: prepared("bob", "his"), ALICE: prepared("alice", "mine")}
    decision = vote.decide(group, ALICE, votes, (), False)
    assert decision is not None
    assert decision.lost == ("bob",)


def test_the_leader_may_be_the_one_that_is_wrong() -> None:
    decision = verdict([prepared("alice", "other"), prepared("bob"), prepared("carol")])
    assert decision is not None
    assert decision.lost == ("alice",)


def test_a_member_that_is_accused_and_silent_is_lost() -> None:
    votes = [failed("alice", "no contribution from carol", "carol")]
    assert verdict(votes) is None
    votes.append(failed("bob", "the attempt failed"))
    assert verdict(votes) == Verdict(False, "no contribution from carol", ("carol",))


def test_a_member_that_the_directory_lost_is_not_waited_for() -> None:
    votes = [prepared("alice"), prepared("bob")]
    assert verdict(votes, gone=[CAROL]) == Verdict(False, "carol did not vote", ("carol",))


def test_who_voted_before_it_was_lost_does_not_stop_the_others() -> None:
    assert verdict([prepared("alice"), prepared("bob"), prepared("carol")], gone=[CAROL]) == Verdict(True)


def test_after_the_deadline_the_silent_are_lost() -> None:
    assert verdict([prepared("alice")], is_late=True) == Verdict(False, "bob and carol did not vote", ("bob", "carol"))


def test_of_those_who_all_answer_the_most_accused_is_lost() -> None:
    votes = [failed("alice", "NaN from bob", "bob"), failed("bob", "it failed"), failed("carol", "NaN", "bob")]
    assert verdict(votes) == Verdict(False, "NaN from bob", ("bob",))


def test_when_two_accuse_each_other_it_is_not_the_leader() -> None:
    votes = [failed("alice", "bob broke", "bob"), failed("bob", "alice broke", "alice"), prepared("carol")]
    decision = verdict(votes)
    assert decision is not None
    assert decision.lost == ("bob",)


def test_a_failure_without_a_culprit_loses_nobody() -> None:
    assert verdict([failed("alice"), prepared("bob"), prepared("carol")]) == Verdict(False, "it broke", ())


VOTES = st.one_of(
    st.builds(lambda peer, digest: prepared(peer, digest), st.sampled_from("abc"), st.sampled_from(["same", "other"])),
    st.builds(lambda peer, lost: failed(peer, lost=lost), st.sampled_from("abc"), st.sampled_from(["", "a", "b", "c"])),
)


@given(st.lists(VOTES, max_size=5), st.sets(st.sampled_from("abc")))
def test_late_is_always_decided_and_only_agreement_commits(votes: list[Vote], gone: set[str]) -> None:
    group = slices.assign("x", [join("a"), join("b"), join("c")], 10)
    cast = {ballot.peer: ballot for ballot in votes} | {PeerId("a"): prepared("a")}
    decision = vote.decide(group, PeerId("a"), cast, {PeerId(peer) for peer in gone}, True)
    assert decision is not None
    agree = len(cast) == 3 and all(ballot.prepared and ballot.digest == "same" for ballot in cast.values())
    assert decision.committed == agree
