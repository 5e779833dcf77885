from __future__ import annotations

from distqat.averaging.discipline import MOST_DOUBLINGS, Discipline
from distqat.ids import PeerId

BOB = PeerId("bob")


def test_the_first_failure_costs_nothing_more() -> None:
    discipline = Discipline(4.0)
    discipline.blame(BOB, "NaN", 10.0)
    assert not discipline.objection(BOB, 10.0)


def test_each_further_one_costs_twice_as_much() -> None:
    discipline, now = Discipline(4.0), 0.0
    discipline.blame(BOB, "NaN", now)
    for seconds in (4.0, 8.0, 16.0):
        discipline.blame(BOB, "NaN", now)
        assert f"held back for {seconds:.1f} s after" in discipline.objection(BOB, now)
        assert discipline.objection(BOB, now + seconds - 0.01).endswith("failures in a row: NaN")
        assert not discipline.objection(BOB, now + seconds)
        now += seconds


def test_the_price_has_an_end() -> None:
    discipline = Discipline(1.0)
    for _ in range(100):
        discipline.blame(BOB, "NaN", 0.0)
    assert not discipline.objection(BOB, 2.0**MOST_DOUBLINGS)


def test_who_takes_part_is_forgiven() -> None:
    discipline = Discipline(4.0)
    for _ in range(3):
        discipline.blame(BOB, "NaN", 0.0)
    discipline.forgive(BOB)
    discipline.blame(BOB, "NaN", 1.0)
    assert not discipline.objection(BOB, 1.0)


def test_those_who_are_not_there_any_more_are_forgotten() -> None:
    discipline = Discipline(4.0)
    for _ in range(3):
        discipline.blame(BOB, "NaN", 0.0)
    discipline.forget({PeerId("alice")})
    assert not discipline.objection(BOB, 0.0)
    assert repr(discipline) == "<Discipline 0 have failed>"
