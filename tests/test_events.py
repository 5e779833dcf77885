"""Typed events: what they need, how they are written, and in which order those of several daemons stand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.events import MAX_TEXT, RELIEF, TROUBLE, Event, Kind, Subject, merged, sentence
from tests import house

ALICE, BOB = "a" * 40, "b" * 40
FULL = Subject(BOB, "expert", "digits@0123", "mlp/1", "p1-00ff", 3, 1, 12, 4, "silence", 64, 1_000, 0.5)
LOST = Event(7, 1.5, 1_700_000_000.25, ALICE, Kind.LOST, "lost bbbbbbbb: silent", Subject(peer=BOB, how="silence"))


def event(daemon: str, serial: int, wall: float) -> Event:
    return Event(serial, wall, wall, daemon, Kind.STARTED, "here")


@pytest.mark.parametrize("kind", list(Kind))
def test_a_kind_is_told_with_what_it_needs_and_not_without(kind: Kind) -> None:
    told = replace(LOST, kind=kind, subject=FULL)
    assert Event.parse(told.line()) == told
    for name in kind.needs:
        with pytest.raises(ValueError, match=name):
            replace(told, subject=replace(FULL, **{name: None}))


def test_every_kind_is_recorded_somewhere() -> None:
    """One that nobody records is a promise that is not kept."""
    sources = [module.source for module in house.modules() if module.path != "events.py"]
    assert [kind.name for kind in Kind if not any(f"Kind.{kind.name}" in source for source in sources)] == []
    assert not TROUBLE & RELIEF


def test_a_line_has_the_fields_side_by_side_and_none_that_is_not_there() -> None:
    row = json.loads(LOST.line())
    assert row == {
        "serial": 7,
        "wall": 1_700_000_000.25,
        "monotonic": 1.5,
        "daemon": ALICE,
        "kind": "lost",
        "peer": BOB,
        "how": "silence",
        "text": "lost bbbbbbbb: silent",
    }


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        '{"serial": 1',
        LOST.line()[:-10],
        LOST.line().replace('"lost"', '"vanished"'),
        LOST.line().replace('"serial": 7', '"serial": []'),
        LOST.line().replace('"wall": 1700000000.25', '"wall": "now"'),
        LOST.line().replace('"how"', '"why"'),
        LOST.line().replace('"serial": 7', '"serial": Infinity'),
    ],
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own errors are ValueErrors too
        Event.parse(line)


@given(st.text())
def test_a_sentence_is_one_line_that_can_be_printed(text: str) -> None:
    said = sentence(text)
    assert len(said) <= MAX_TEXT
    assert said.isprintable()
    assert said == said.strip()


def test_an_event_is_about_its_daemon_and_its_peer() -> None:
    assert LOST.is_about("aaaa")
    assert LOST.is_about(BOB)
    assert not LOST.is_about("c")


def test_events_are_merged_by_their_wall_clocks() -> None:
    alice, bob = [event(ALICE, 1, 10.0), event(ALICE, 2, 30.0)], [event(BOB, 5, 20.0), event(BOB, 6, 40.0)]
    assert merged([bob, alice]) == [alice[0], bob[0], alice[1], bob[1]]
    assert merged([alice, alice]) == alice
    assert merged([]) == []


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.floats(0, 100)), max_size=30))
def test_a_clock_that_was_set_back_turns_no_events_of_one_daemon_around(told: list[tuple[str, float]]) -> None:
    events = [event(daemon, serial, wall) for serial, (daemon, wall) in enumerate(told)]
    shown = merged([events[::2], events[1::2]])
    assert len(shown) == len(events)
    for daemon in (ALICE, BOB):
        serials = [each.serial for each in shown if each.daemon == daemon]
        assert serials == sorted(serials)
