"""What a member does: wait for its group, average, vote, and hear what became of it. Pure."""

from __future__ import annotations

from distqat.averaging import events, slices
from distqat.averaging.group import Group, Vote
from distqat.averaging.way import Way
from distqat.errors import MessageError
from distqat.ids import short


def grouped(way: Way, event: events.Grouped) -> None:
    """The leader has formed the group."""
    fault = _fault(way, event.group)
    if fault:
        turned_down(way, events.Declined(f"{short(way.leader.peer)} sent {fault}"))
    else:
        way.company.attempt(member.peer for member in event.group.members)
        way.refused = {}
        way.enter(event.group)


def outdated(way: Way, event: events.Outdated) -> None:
    """There is a better anchor, says the leader."""
    way.behind(event.stale)


def averaged(way: Way, event: events.Averaged) -> None:
    """The round would end with this."""
    assert way.group is not None
    way.cast(Vote(way.group.attempt, way.me.peer, True, event.digest))


def broken(way: Way, event: events.Broken) -> None:
    """There is no average here."""
    assert way.group is not None
    way.cast(Vote(way.group.attempt, way.me.peer, False, reason=event.reason, lost=event.lost))


def heard(way: Way, event: events.Heard) -> None:
    """The leader has pronounced what became of the attempt."""
    way.settle(event.verdict)


def turned_down(way: Way, event: events.Declined) -> None:
    """The leader lives, but does not lead this one now; the next in the order does."""
    _depart(way)
    way.company.declined.add(way.leader.peer)
    way.spend(way.leader.peer)
    way.pause()


def unreached(way: Way, event: events.Unreached) -> None:
    """The leader cannot be reached. What was voted for stays in doubt."""
    _depart(way)
    if event.is_gone:
        way.company.bury(way.leader.peer)
    else:
        way.company.miss(way.leader.peer, way.now, event.is_silent)
    way.lose(way.leader.peer, event.reason)
    way.choose()


def dismissed(way: Way, event: events.Dismissed) -> None:
    """The leader has given the round up, and another would fare no better."""
    _depart(way)
    way.fail(event.reason)


def _depart(way: Way) -> None:
    if way.group is not None:
        way.act(events.Conclude(way.group.attempt))
        way.group = None


def _fault(way: Way, group: Group) -> str:
    """What is wrong with the group; empty if nothing is."""
    assert way.mine is not None
    if group.settles:
        return "" if group.find(way.me.peer) is not None else "a group without this sibling"
    try:
        slices.check(group, way.mine)
    except MessageError as error:
        return error.reason
    return ""
