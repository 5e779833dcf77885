"""One sibling's way through a round, as a table: what it does in which state when which thing happens. Pure.

    RESTING > FORMING > LEADING   > COUNTING > RESTING        as the leader
            > JOINING > FOLLOWING > VOTING   > RESTING        as a member

PAUSING lies between two attempts, CATCHING_UP on the way to what others have committed. `Round.handle` takes an event
and returns actions; whoever runs it moves the messages and says what time it is. Nothing else decides anything. After
every event a leader decides anew whether the group forms, or what the votes come to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distqat.averaging import events, guests, leader, member
from distqat.averaging.vote import names
from distqat.averaging.way import State, Way
from distqat.errors import RefusedError
from distqat.ids import short


class UnexpectedError(RuntimeError):
    """Something was said to have happened that cannot happen then: a fault in the program."""


class Round(Way):
    """What one sibling knows, and what it does about whatever happens."""

    def handle(self, event: events.Event, now: float) -> list[events.Action]:
        """What to do about it, in this order. Raises UnexpectedError for what cannot happen in this state."""
        handler = TABLE[self.state][type(event)]
        if isinstance(handler, str):
            raise UnexpectedError(f"{type(event).__name__} while {self.state.value}: {handler}")
        self.now, self.actions = now, []
        handler(self, event)
        while REVIEWS.get(self.state, _nothing)(self):
            pass
        return self.actions

    def describe(self) -> str:
        """What it does, for people."""
        return f"{self.round}: {DOING[self.state](self)}"


Handler = Callable[[Any, Any], None]


def _begin(way: Way, event: events.Begin) -> None:
    way.begin(event.join)


def _look(way: Way, event: events.Looked) -> None:
    way.company.look(event.ready)


def _move(way: Way, event: events.Moved) -> None:
    way.move(event)


def _miss(way: Way, event: events.Missed) -> None:
    if event.donor in way.form:
        way.form.leave(event.donor)
        way.act(events.Release(event.donor, RefusedError(f"its state cannot be had: {event.reason}")))
    way.lose(event.donor, event.reason)
    way.pause()


def _stop(way: Way, event: events.Stopped) -> None:
    if way.tally is not None:
        leader.close(way, f"{short(way.me.peer)} has left the attempt")
    elif way.group is not None:
        way.act(events.Conclude(way.group.attempt))
    way.rest(RefusedError(event.reason))


def _stand_still(way: Way, event: events.StoodStill) -> None:
    reason = f"{short(way.me.peer)} stood still for {event.seconds:.1f} s"
    _stop(way, events.Stopped(reason))
    way.act(events.Finish(f"{way.round}: {reason}"))


def _hear_of_better(way: Way, event: events.Outdated) -> None:
    """A sibling that was missing has committed more: the next call catches up."""
    way.company.impasse = ()


def _pass_over(way: Way, event: object) -> None:
    """It is too late to matter."""


def _nothing(way: Way) -> bool:
    return False


def _resume(way: Way) -> bool:
    if way.now < way.wake:
        return False
    way.choose()
    return True


REVIEWS: Mapping[State, Callable[[Way], bool]] = {
    State.FORMING: leader.gather,
    State.COUNTING: leader.count,
    State.PAUSING: _resume,
}
"""What is decided anew after every event; whether the state is another then."""

ALWAYS: Mapping[type, Handler] = {
    events.Looked: _look,
    events.Joined: guests.joined,
    events.Left: guests.left,
    events.Called: guests.called,
    events.Departed: guests.departed,
    events.Answered: leader.answered,
    events.Stopped: _stop,
    events.StoodStill: _stand_still,
}
"""What others, the clock and the owner do at any time."""

NOT_BUSY = "it has asked nobody for that"
UNDER_WAY = "a round is under way"
NO_VOTES = "it leads no attempt"
HOLDS_NOTHING = "it has nothing to commit, and asked nobody for state"


def _state(handled: Mapping[type, Handler], moved: Handler | str = HOLDS_NOTHING) -> Mapping[type, Handler | str]:
    own = (events.Grouped, events.Declined, events.Unreached, events.Dismissed, events.Averaged, events.Broken)
    row: dict[type, Handler | str] = dict.fromkeys((*own, events.Heard, events.Missed, events.Outdated), NOT_BUSY)
    row |= {events.Begin: UNDER_WAY, events.Voted: NO_VOTES, events.Moved: moved}
    return {**row, **ALWAYS, **handled}


ASKED: Mapping[type, Handler] = {
    events.Declined: member.turned_down,
    events.Unreached: member.unreached,
    events.Dismissed: member.dismissed,
}
AVERAGING: Mapping[type, Handler] = {events.Averaged: member.averaged, events.Broken: member.broken}

TABLE: Mapping[State, Mapping[type, Handler | str]] = {
    State.RESTING: _state({events.Begin: _begin, events.Outdated: _hear_of_better}, _move),
    State.FORMING: _state({events.Outdated: leader.overtaken}, _move),
    State.LEADING: _state({**AVERAGING, events.Voted: leader.voted, events.Outdated: _pass_over}),
    State.COUNTING: _state({events.Voted: leader.voted, events.Outdated: leader.overtaken}, _move),
    State.JOINING: _state({**ASKED, events.Grouped: member.grouped, events.Outdated: member.outdated}, _move),
    State.FOLLOWING: _state({**AVERAGING, events.Outdated: _pass_over}),
    State.VOTING: _state({**ASKED, events.Heard: member.heard, events.Outdated: _pass_over}, _move),
    State.CATCHING_UP: _state({events.Missed: _miss, events.Outdated: _pass_over}, _move),
    State.PAUSING: _state({events.Outdated: _pass_over}),
}
"""A sentence instead of a handler: why that cannot happen."""


def is_for_resting(event: events.Event) -> bool:
    """Whether a sibling that wants no round can make something of it."""
    return not isinstance(TABLE[State.RESTING][type(event)], str)


DOING: Mapping[State, Callable[[Way], str]] = {
    State.RESTING: lambda way: "resting",
    State.FORMING: lambda way: f"waiting for {names(way.missing) or 'nobody'} to join",
    State.LEADING: lambda way: _exchanging(way),
    State.COUNTING: lambda way: f"waiting for the votes of {names(way.missing) or 'nobody'}",
    State.JOINING: lambda way: f"waiting for {short(way.leader.peer)} to form it",
    State.FOLLOWING: lambda way: _exchanging(way),
    State.VOTING: lambda way: f"waiting for the verdict of {short(way.leader.peer)}",
    State.CATCHING_UP: lambda way: f"catching up from {short(way.donor or way.leader.peer)}",
    State.PAUSING: lambda way: "pausing before the next attempt",
}


def _exchanging(way: Way) -> str:
    return f"exchanging among {len(way.group.members) if way.group is not None else 0}"
