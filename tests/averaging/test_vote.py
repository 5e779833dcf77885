from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import slices
from distqat.averaging.group import Group, Verdict, Vote
from distqat.averaging.quorum import Quorum
from distqat.averaging.vote import Tally
from distqat.ids import PeerId
from tests.averaging.words import failed, join, prepared, round_ref

ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")
ALL = (ALICE, BOB, CAROL)
GROUP = slices.assign("x", [join("alice"), join("bob"), join("carol")], 10)
COMMITTED = Verdict(True, digest="same", donor="alice")


def tally(votes: Iterable[Vote], group: Group = GROUP) -> Tally:
    """Alice leads; all three decide."""
    found = Tally(group, ALICE, Quorum.of(round_ref(), ALL), set(ALL))
    for vote in votes:
        found.cast(vote)
    return found


def verdict(
    votes: Iterable[Vote], lost: Iterable[PeerId] = (), gone: Iterable[PeerId] = (), is_late: bool = False
) -> Verdict | None:
    """What alice decides."""
    return tally(votes).decide(set(lost), set(gone), is_late)


def test_it_commits_when_all_hold_the_same() -> None:
    assert verdict([prepared("alice"), prepared("bob")]) is None
    assert verdict([prepared("alice"), prepared("bob"), prepared("carol")]) == COMMITTED


def test_who_votes_twice_is_heard_once_and_strangers_never() -> None:
    assert verdict([prepared("alice"), prepared("alice", "other"), prepared("mallory")]) is None
    assert tally([prepared("mallory")]).silent == ALL


def test_who_came_to_another_result_does_not_stop_those_who_decide() -> None:
    decision = verdict([prepared("alice"), prepared("bob", "other"), prepared("carol")])
    assert decision == Verdict(True, blamed=("bob",), digest="same", donor="alice")


def test_without_those_who_decide_it_is_named() -> None:
    votes = [prepared("alice"), prepared("bob", "other"), failed("carol")]
    decision = verdict(votes)
    assert decision == Verdict(False, "it broke")
    decision = Tally(GROUP, ALICE, Quorum.of(round_ref(), [CAROL]), {CAROL}).decide((), (), True)
    assert decision is not None
    assert not decision.committed


def test_the_leader_may_be_the_one_that_is_wrong() -> None:
    decision = verdict([prepared("alice", "other"), prepared("bob"), prepared("carol")])
    assert decision == Verdict(True, blamed=("alice",), digest="same", donor="bob")


def test_who_failed_takes_it_from_those_who_decide() -> None:
    decision = verdict([prepared("alice"), failed("bob", "carol broke", "carol"), prepared("carol")])
    assert decision == COMMITTED


def test_a_member_that_is_accused_and_does_not_answer_is_lost() -> None:
    votes = [failed("alice", "no contribution from carol", "carol"), failed("bob", "the attempt failed")]
    assert verdict(votes) is None
    assert tally(votes).accused == {CAROL}
    assert verdict(votes, lost=[CAROL]) == Verdict(False, "no contribution from carol", ("carol",))


def test_a_silent_member_that_is_lost_does_not_stop_the_others() -> None:
    votes = [prepared("alice"), prepared("bob")]
    assert verdict(votes, lost=[CAROL]) == Verdict(True, "", ("carol",), (), "same", "alice")


def test_those_who_are_left_must_decide() -> None:
    first = Quorum.of(round_ref(), ALL).first
    assert verdict([prepared("alice")], is_late=True) == Verdict(False, "bob and carol did not vote", ("bob", "carol"))
    assert first is not None
    decision = verdict([prepared("alice")], gone=[BOB, CAROL])
    assert decision is not None
    assert decision.committed


def test_of_those_who_all_answer_the_most_accused_is_to_blame() -> None:
    votes = [failed("alice", "NaN from bob", "bob"), failed("bob", "it failed"), failed("carol", "NaN", "bob")]
    assert verdict(votes) == Verdict(False, "NaN from bob", (), ("bob",))


def test_when_two_accuse_each_other_it_is_not_the_leader() -> None:
    votes = [failed("alice", "bob broke", "bob"), failed("bob", "alice broke", "alice"), prepared("carol")]
    decision = verdict(votes)
    assert decision is not None
    assert decision.blamed == ("bob",)


def test_a_failure_without_a_culprit_loses_nobody() -> None:
    assert verdict([failed("alice"), failed("bob"), prepared("carol")]) == Verdict(False, "it broke", ())


def test_the_voiceless_count_as_gone() -> None:
    """They are newcomers, or have begun anew: what their former lives said is lost."""
    found = Tally(GROUP, ALICE, Quorum.of(round_ref(), ALL), {ALICE})
    for name in ("alice", "bob", "carol"):
        found.cast(prepared(name))
    decision = found.decide((), (), False)
    assert decision is not None
    assert decision.committed


VOTES = st.one_of(
    st.builds(lambda peer, digest: prepared(peer, digest), st.sampled_from("abc"), st.sampled_from(["same", "other"])),
    st.builds(lambda peer, lost: failed(peer, lost=lost), st.sampled_from("abc"), st.sampled_from(["", "a", "b", "c"])),
)


@given(st.lists(VOTES, max_size=5), st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abc")))
def test_late_is_always_decided_and_only_a_quorum_commits(votes: list[Vote], gone: set[str], voices: set[str]) -> None:
    group = slices.assign("x", [join("a"), join("b"), join("c")], 10)
    base = [PeerId(name) for name in "abc"]
    quorum = Quorum.of(round_ref(), base)
    found = Tally(group, PeerId("a"), quorum, {PeerId(peer) for peer in voices})
    for ballot in votes:
        found.cast(ballot)
    decision = found.decide((), {PeerId(peer) for peer in gone}, True)
    assert decision is not None
    if decision.committed:
        holders = [peer for peer, ballot in found.votes.items() if ballot.prepared and ballot.digest == decision.digest]
        assert decision.donor in holders
        dead = {PeerId(peer) for peer in gone} | (set(base) - {PeerId(peer) for peer in voices})
        assert quorum.has([peer for peer in holders if peer in voices], dead)
