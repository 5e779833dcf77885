"""Events on the wire: pages, and what is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distqat.errors import MessageError
from distqat.event_log import EventLog
from distqat.events import Event, Kind, Subject
from distqat.roles.events.messages import MAX_EVENTS, EventsReply, EventsRequest

FULL = Subject("b", "expert", "digits@0123", "mlp/1", "p1-00ff", 3, 1, 12, 4, "silence", 64, 1_000, 0.5)


def crossed(log: EventLog, after: int = 0, most: int = 0) -> EventsReply:
    request = EventsRequest.decode(EventsRequest(after, most).encode())
    return EventsReply.decode(EventsReply.of(log, request).encode())


def test_every_kind_crosses_the_wire() -> None:
    log = EventLog("a" * 40, 10)
    for kind in Kind:
        log.record(kind, f"it is {kind}", FULL)
    log.record(Kind.STARTED, "nothing but this", Subject(step=0, stage=""))
    reply = crossed(log)
    assert reply.read() == log.since(0)
    assert not reply.more


def test_pages_follow_each_other_until_there_is_no_more() -> None:
    log = EventLog("a" * 40)
    for number in range(7):
        log.record(Kind.STARTED, str(number))
    found: list[Event] = []
    after = 0
    for _ in range(3):
        reply = crossed(log, after, most=3)
        found += reply.read()
        after = found[-1].serial
    assert [event.text for event in found] == [str(number) for number in range(7)]
    assert not reply.more
    assert crossed(log, after).read() == []


def test_one_answer_is_bounded() -> None:
    log = EventLog("a" * 40)
    for number in range(MAX_EVENTS + 5):
        log.record(Kind.STARTED, str(number))
    for most in (0, MAX_EVENTS + 4):
        reply = crossed(log, most=most)
        assert (len(reply.events), reply.more) == (MAX_EVENTS, True)


def test_a_kind_that_is_unknown_here_is_an_error() -> None:
    log = EventLog("a" * 40)
    log.record(Kind.STARTED, "here")
    reply = crossed(log)
    odd = replace(reply, events=(replace(reply.events[0], kind="vanished"),))
    with pytest.raises(MessageError, match="vanished"):
        odd.read()
    bare = replace(reply, events=(replace(reply.events[0], kind="lost"),))
    with pytest.raises(MessageError, match="without peer, how"):
        bare.read()
