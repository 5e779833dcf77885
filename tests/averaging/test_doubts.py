from __future__ import annotations

from dataclasses import replace

from distqat.averaging.doubts import Free, Settle, Unsure, judge, unresolved
from distqat.averaging.group import Contact, Doubt, Join
from distqat.averaging.quorum import Quorum
from distqat.ids import Endpoint, PeerId
from tests.averaging.words import join, round_ref

FIVE = Quorum.of(round_ref(), [PeerId(name) for name in "abcde"])
THREE = Quorum.of(round_ref(), [PeerId(name) for name in "abc"])


def contacts(names: str) -> tuple[Contact, ...]:
    return tuple(Contact(PeerId(name), Endpoint(name, 1)) for name in names)


def holds(name: str, digest: str, members: str) -> Join:
    return replace(join(name), doubt=Doubt(digest, contacts(members)))


def test_nothing_is_in_doubt() -> None:
    assert judge(THREE, [join("a"), join("b")], (), ()) == Free()


def test_those_who_hold_it_and_decide_commit_it() -> None:
    joins = [holds("b", "x", "abc"), holds("c", "x", "abc")]
    assert judge(THREE, joins, (), ()) == Settle("x")


def test_somebody_who_cannot_be_asked_may_have_committed_it() -> None:
    """a and b may have been a majority, and b alone is none."""
    joins = [holds("b", "x", "ab"), join("c")]
    assert judge(THREE, joins, (), ()) == Unsure(contacts("a"))


def test_without_a_possible_majority_it_is_given_up() -> None:
    joins = [holds("b", "x", "ab"), join("c"), join("d"), join("e")]
    assert judge(FIVE, joins, (), ()) == Free()


def test_the_word_of_one_without_a_voice_is_not_taken() -> None:
    """A former life of c may have voted for it, so a and c may have been a majority of three."""
    silent = replace(join("c"), has_voice=False)
    joins = [holds("b", "x", "abc"), silent]
    assert judge(THREE, joins, (PeerId("c"),), (PeerId("c"),)) == Unsure(contacts("a"))
    # Its own word would have been enough.
    assert judge(THREE, [joins[0], join("c"), join("a")], (), ()) == Free()


def test_when_all_others_are_gone_nobody_can_have_committed_it() -> None:
    joins = [holds("b", "x", "ab"), join("c")]
    assert judge(THREE, joins, (PeerId("a"),), (PeerId("a"),)) == Free()


def test_what_all_hold_is_committed_although_it_may_be_given_up() -> None:
    joins = [holds("b", "x", "abc"), holds("c", "x", "abc")]
    assert judge(THREE, joins, (PeerId("a"),), (PeerId("a"),)) == Settle("x")


def test_of_two_results_that_may_both_be_committed_none_is_chosen() -> None:
    joins = [holds("b", "x", "abde"), holds("c", "y", "acde")]
    assert judge(Quorum.of(round_ref(), [PeerId("a"), PeerId("d"), PeerId("e")]), joins, (), ()) == Unsure(
        contacts("ade")
    )


def test_of_two_results_one_of_which_cannot_be_the_other_counts() -> None:
    joins = [holds("b", "x", "abcd"), holds("c", "x", "abcd"), holds("d", "x", "abcd"), holds("e", "y", "ae")]
    assert judge(FIVE, joins, (), ()) == Settle("x")


def test_an_attempt_of_which_nothing_is_held_is_no_result() -> None:
    joins = [holds("b", "", "abc"), join("c")]
    assert judge(THREE, joins, (), ()) == Free()
    assert unresolved(joins, ()) == contacts("a")
    assert unresolved(joins, (PeerId("a"),)) == ()
