from __future__ import annotations

from collections.abc import Callable

import pytest

from distqat.averaging.company import Company
from distqat.averaging.group import Contact
from distqat.averaging.waits import Waits
from distqat.ids import Endpoint, PeerId
from distqat.sections import SyncSection

ALICE, BOB, CAROL = (PeerId(name) for name in ("alice", "bob", "carol"))
WAITS = Waits.of(SyncSection(max_wait=4.0), 10)


def contact(peer: PeerId) -> Contact:
    return Contact(peer, Endpoint(peer, 1))


@pytest.fixture
def company() -> Company:
    """As alice sees it; the directory has bob, and carol was in the last group."""
    company = Company(ALICE, WAITS)
    company.meet([contact(CAROL)])
    company.look({ALICE: Endpoint("alice", 1), BOB: Endpoint("bob", 1)})
    company.advance((BOB, CAROL))
    return company


def test_who_is_silent_for_long_is_taken_for_dead(company: Company) -> None:
    company.miss(CAROL, 5.0)
    company.miss(CAROL, 9.0)
    assert company.dead(5.0 + WAITS.presumed - 0.1) == set()
    assert company.seconds_until_dead([BOB, CAROL], 6.0) == WAITS.presumed - 1.0
    assert company.dead(5.0 + WAITS.presumed) == {CAROL}


def test_nobody_is_taken_for_dead_who_was_not_asked_again(company: Company) -> None:
    """This process may have stood still for just as long."""
    company.miss(CAROL, 5.0)
    company.begin()
    assert company.dead(1000.0) == set()
    company.miss(CAROL, 1000.0)
    assert company.dead(1000.0) == {CAROL}


def test_who_is_gone_and_lives_again_decides_nothing_but_may_know_something(company: Company) -> None:
    for peer in (BOB, CAROL):
        company.bury(peer)
    assert company.absent(5.0) == company.dead(5.0) == {BOB, CAROL}
    company.look({BOB: Endpoint("bob", 1)})
    assert company.absent(5.0) == {BOB, CAROL}, "the directory has not learned of its death"
    company.look({BOB: Endpoint("bob", 2)})
    company.heard_from(contact(CAROL))
    assert (company.absent(5.0), company.dead(5.0)) == (set(), {BOB, CAROL})
    company.bury(BOB)
    assert company.absent(5.0) == {BOB}


def test_a_word_ends_the_silence(company: Company) -> None:
    company.miss(CAROL, 5.0)
    company.lose(CAROL, "it broke")
    company.heard_from(contact(CAROL))
    assert company.dead(1000.0) == set()
    assert CAROL not in company.lost
    assert CAROL not in company.silent


def test_who_takes_part_in_an_attempt_is_not_silent(company: Company) -> None:
    """Its leader has heard from it; who only follows never does by itself."""
    company.miss(BOB, 5.0)
    company.miss(CAROL, 5.0)
    company.attempt((ALICE, BOB))
    assert company.quiet == {CAROL}
    # A silence that begins later is as long as any.
    later = 5.0 + 10 * WAITS.presumed
    company.miss(BOB, later)
    assert company.dead(later) == {CAROL}


def test_who_was_silent_and_is_heard_from_is_given_longer(company: Company) -> None:
    assert company.patience(BOB) == WAITS.invite
    company.miss(BOB, 5.0, is_silent=True)
    assert company.patience(BOB) == WAITS.invite
    company.heard_from(contact(BOB))
    company.heard_from(contact(BOB))
    assert company.patience(BOB) == 2 * WAITS.invite
    company.miss(BOB, 6.0, is_silent=True)
    company.attempt((ALICE, BOB))
    assert company.patience(BOB) == 4 * WAITS.invite
    # Calls that break say nothing of how long an answer takes.
    company.miss(CAROL, 5.0)
    company.heard_from(contact(CAROL))
    assert company.patience(CAROL) == WAITS.invite
    for _ in range(5000):
        company.miss(BOB, 7.0, is_silent=True)
        company.heard_from(contact(BOB))
    assert company.patience(BOB) == WAITS.form


def test_who_is_gone_is_gone_until_the_next_round(company: Company) -> None:
    company.bury(CAROL)
    company.begin()
    assert company.dead(0.0) == {CAROL}
    company.advance((ALICE, BOB))
    assert company.dead(0.0) == set()


def test_a_round_waits_for_those_who_live_and_are_not_lost(company: Company) -> None:
    assert company.expected == {BOB}
    assert company.lose(BOB, "it broke")
    assert not company.lose(BOB, "it broke again")
    assert company.expected == set()
    company.begin()
    assert company.expected == {BOB}


def test_nobody_is_asked_twice_at_once_or_too_often(company: Company) -> None:
    assert company.may_ask(BOB, 0.5, 0.0)
    company.ask(BOB, 0.0)
    assert not company.may_ask(BOB, 0.5, 1.0)
    company.asking.discard(BOB)
    assert not company.may_ask(BOB, 0.5, 0.4)
    assert company.may_ask(BOB, 0.5, 0.5)
    assert not company.may_ask(PeerId("nobody knows where"), 0.5, 9.0)


def test_an_impasse_ends_with_news_of_those_who_are_missing(company: Company) -> None:
    def is_over(news: Callable[[], object]) -> bool:
        company.strand([BOB, CAROL], [ALICE])
        news()
        return not company.is_stranded(0.0)

    assert not is_over(lambda: company.heard_from(contact(PeerId("dave"))))
    assert not is_over(lambda: company.hold_up(contact(BOB)))
    assert not is_over(lambda: company.miss(BOB, 0.0))
    assert not is_over(company.begin)
    assert is_over(lambda: company.heard_from(contact(BOB)))
    assert is_over(lambda: company.bury(CAROL))
    assert is_over(lambda: company.attempt([BOB]))
    company.strand([BOB, CAROL], [ALICE])
    company.miss(CAROL, 0.0)
    assert company.is_stranded(WAITS.presumed - 0.1)
    assert not company.is_stranded(WAITS.presumed), "the next call asks whether it is dead"
    assert is_over(lambda: company.advance((ALICE, BOB)))


def test_it_is_said_for_whom_a_round_fails(company: Company) -> None:
    company.strand([BOB], [ALICE])
    assert company.why_stranded(0.0).startswith("1 of 2 siblings cannot be reached and may go on without us")
    company.hold_up(contact(BOB))
    assert company.why_stranded(0.0) == "1 of 2 siblings stand still in a step and may go on without us"


def test_where_the_lost_were_is_told_on(company: Company) -> None:
    assert company.hearsay() == (contact(CAROL),)
    assert company.unreachable([BOB, CAROL, PeerId("nobody knows where")]) == {"nobody knows where"}
    company.miss(CAROL, 0.0)
    assert CAROL in company.unreachable([CAROL])
    assert repr(company) == "<Company 1 live, 0 lost, 0 gone>"


def test_who_is_no_sibling_any_more_is_forgotten(company: Company) -> None:
    company.advance((ALICE, BOB))
    assert CAROL not in company.endpoints
