"""What others want of a sibling while it rests, leads or takes part elsewhere. Pure."""

from __future__ import annotations

from distqat.averaging import events, rendezvous
from distqat.averaging.group import Contact, Invite, Invited, JoinReply
from distqat.averaging.way import State, Way, dismissal
from distqat.errors import RefusedError, RoundError, StaleError
from distqat.ids import short

ELSEWHERE = (State.JOINING, State.FOLLOWING, State.VOTING)
"""Its next word goes to another leader."""


def joined(way: Way, event: events.Joined) -> None:
    """A sibling waits here, as long as this one may lead."""
    join, me = event.join, short(way.me.peer)
    way.company.heard_from(join.contact)
    way.company.meet(join.contacts)
    reason = way.company.left_out.get(join.peer)
    if join.round.number < way.round.number:
        way.act(events.Release(join.peer, JoinReply(stale=way.offer())))
    elif reason is not None:
        way.act(events.Release(join.peer, RefusedError(f"{short(join.peer)} is left out of {way.round}: {reason}")))
    elif way.state is State.RESTING and join.peer in way.company.stranded and way.company.is_stranded(way.now):
        way.act(events.Release(join.peer, dismissal(f"{me}: {way.company.why_stranded(way.now)}")))
    elif way.state in ELSEWHERE:
        where = f"{me} takes part in the round at {short(way.leader.peer)}"
        way.act(events.Release(join.peer, RefusedError(where)))
    else:
        way.form.join(join, way.now)
        if way.state is State.PAUSING:
            way.choose()


def left(way: Way, event: events.Left) -> None:
    """A sibling waits here no more."""
    way.form.leave(event.peer, event.call)


def called(way: Way, event: events.Called) -> None:
    """A sibling invites this one."""
    invite, me = event.invite, short(way.me.peer)
    way.company.heard_from(Contact(invite.leader, invite.endpoint))
    reason = way.company.left_out.get(invite.leader)
    if invite.round.number < way.round.number:
        error = StaleError(f"{me} has committed {way.round.number} rounds, {invite.round} among them")
        way.act(events.Reply(error))
    elif reason is not None:
        way.act(events.Reply(RoundError(f"{short(invite.leader)} is left out of {invite.round}: {reason}")))
    elif way.state is State.FORMING:
        _rival(way, invite)
    elif way.state in (State.RESTING, State.PAUSING, State.CATCHING_UP):
        way.accept(invite)
        way.act(events.Reply(Invited(True)))
        if way.state is State.PAUSING:
            way.choose()
    else:
        is_there = way.leader.peer == invite.leader
        way.act(events.Reply(Invited(is_there, f"{me} takes part in {invite.round} already")))


def departed(way: Way, event: events.Departed) -> None:
    """A sibling has given its stage up."""
    way.company.bury(event.peer)
    way.company.lose(event.peer, "it has left")


def _rival(way: Way, invite: Invite) -> None:
    """Another sibling forms a round as well; of two of the same round the lower in the order yields."""
    if invite.round == way.round and rendezvous.outranks(way.round, way.me.peer, invite.leader):
        way.act(events.Reply(Invited(False, f"{short(way.me.peer)} leads {invite.round}", leading=True)))
        return
    way.act(events.Reply(Invited(True)))
    submit(way, invite)


def submit(way: Way, invite: Invite) -> None:
    """Lead no more, and join there."""
    way.accept(invite)
    way.send_away(RefusedError(f"{short(invite.leader)} leads {invite.round}"))
    way.choose()
