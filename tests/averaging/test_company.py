from __future__ import annotations

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


def test_a_word_ends_the_silence(company: Company) -> None:
    company.miss(CAROL, 5.0)
    company.lose(CAROL, "it broke")
    company.heard_from(contact(CAROL))
    assert company.dead(1000.0) == set()
    assert CAROL not in company.lost
    assert CAROL not in company.silent


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


def test_where_the_lost_were_is_told_on(company: Company) -> None:
    assert company.hearsay() == (contact(CAROL),)
    assert company.unreachable([BOB, CAROL, PeerId("nobody knows where")]) == {"nobody knows where"}
    company.miss(CAROL, 0.0)
    assert CAROL in company.unreachable([CAROL])
    assert repr(company) == "<Company 1 live, 0 lost, 0 gone>"


def test_who_is_no_sibling_any_more_is_forgotten(company: Company) -> None:
    company.advance((ALICE, BOB))
    assert CAROL not in company.endpoints
