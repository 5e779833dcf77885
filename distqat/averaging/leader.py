"""What a leader does: gather siblings into a group, count their votes. Pure."""

from __future__ import annotations

from collections.abc import Collection

from distqat.averaging import events, guests, terms
from distqat.averaging.events import Answered, Standing
from distqat.averaging.form import CatchUp, Others, Settle, Skip, Start, Stuck, Wait
from distqat.averaging.group import Group, Invite, Join, JoinReply, Stale, Verdict
from distqat.averaging.phases import phase
from distqat.averaging.quorum import Quorum
from distqat.averaging.vote import Tally
from distqat.averaging.way import State, Way, dismissal
from distqat.ids import PeerId, short

RING_INTERVAL = 0.5
"""Seconds between two invitations of a sibling that has not come; it comes by itself, so this delays nobody."""

ASK_INTERVAL = 0.1
"""Seconds between two looks at whether members that have not voted are still there."""


def gather(way: Way) -> bool:
    """Start as soon as the form says so. Whether the state is another now."""
    company = way.company
    others = Others(
        expected=company.expected,
        live=company.live,
        engaged=company.engaged & company.expected,
        gone=company.dead(way.now),
        absent=company.absent(way.now),
        silent=company.unreachable({*company.base, *company.live, *_in_doubt(way)}),
        quiet=company.quiet,
        held_up=company.held_up,
    )
    decision = way.form.decide(others, way.quorum, way.now)
    if isinstance(decision, Wait):
        way.wake, way.missing = decision.until, decision.missing
        # Who takes part elsewhere may do so at one that was out of reach a moment ago.
        again = company.live & company.lost.keys() if company.engaged else set()
        _ring(way, [*decision.missing, *again], RING_INTERVAL)
        return False
    if isinstance(decision, CatchUp | Skip):
        _refer(way, decision.peers, decision.reference)
    elif isinstance(decision, Stuck):
        _give_up(way, decision)
    elif isinstance(decision, Settle):
        _open(way, terms.settling(way.name(), decision.members, decision.digest), decision.members)
    else:
        _start(way, decision)
    return True


def count(way: Way) -> bool:
    """Pronounce the verdict as soon as it is clear. Whether the state is another now."""
    assert way.tally is not None
    company, tally = way.company, way.tally
    late = way.counting_since + way.waits.ballot
    # Whoever is there and is accused will vote in a moment, since its streams have broken too.
    lost = {*company.lost, *(company.seen - company.live), *(tally.accused & company.silent)}
    verdict = tally.decide(lost, company.dead(way.now), way.now >= late)
    if verdict is None:
        way.wake, way.missing = late, tally.silent
        is_time = way.now >= way.counting_since + ASK_INTERVAL
        _ring(way, tally.silent if is_time else tally.accused, ASK_INTERVAL)
        return False
    way.act(events.Pronounce(tally.group.attempt, verdict))
    way.settle(verdict)
    # A commit moves this sibling on by an event of its own.
    return not verdict.committed


def voted(way: Way, event: events.Voted) -> None:
    """A member has voted."""
    assert way.tally is not None
    way.tally.cast(event.vote)


def answered(way: Way, event: Answered) -> None:
    """A sibling that was rung has answered, or has not."""
    company, peer = way.company, event.contact.peer
    company.asking.discard(peer)
    if event.standing is Standing.HELD_UP:
        company.hold_up(event.contact)
        return
    if event.standing in (Standing.COMING, Standing.ENGAGED, Standing.LEADING):
        company.heard_from(event.contact)
        (company.engaged.discard if event.standing is Standing.COMING else company.engaged.add)(peer)
        if event.standing is Standing.LEADING and way.state is State.FORMING:
            guests.submit(way, Invite(way.round, peer, event.contact.endpoint))
        return
    if event.standing is Standing.AGAINST:
        company.heard_from(event.contact)
        if way.quorum.base:
            # It may be the one that is wrong: those who are here decide, if they are enough.
            company.refuse(peer, event.reason)
        elif way.state is State.FORMING:
            way.fail(event.reason)
        return
    if event.standing in (Standing.GONE, Standing.AWAY):
        company.bury(peer)
    else:
        company.miss(peer, way.now, is_silent=event.standing is Standing.SILENT)
    if event.standing is Standing.AWAY:
        company.lose(peer, event.reason)
    elif event.standing is not Standing.SILENT:
        way.lose(peer, event.reason)


def overtaken(way: Way, event: events.Outdated) -> None:
    """A sibling that was rung has committed the round already, or moved on from it."""
    if way.tally is not None:
        close(way, "another group has committed the round")
    way.behind(event.stale)


def close(way: Way, reason: str) -> None:
    """Leave the attempt that this sibling leads: there will be no other verdict."""
    assert way.tally is not None
    way.act(events.Pronounce(way.tally.group.attempt, Verdict(False, reason)))
    way.act(events.Conclude(way.tally.group.attempt))
    if not way.tally.group.settles:
        way.forget_attempt()
    way.tally = None


def _start(way: Way, decision: Start) -> None:
    """Take the contributions of all that are not held back."""
    silenced = dict(way.company.muted)
    for join in decision.members:
        objection = way.company.discipline.objection(join.peer, way.now)
        if objection and join.samples and join.peer not in silenced:
            silenced[join.peer] = objection
            way.act(events.Report(join.peer, objection, is_refused=True))
    if all(join.peer in silenced for join in decision.members if join.samples):
        _refer(way, [join.peer for join in decision.members], decision.members[0])
        return
    way.refused = silenced
    group = terms.group(way.name(), decision.members, phase(way.round.number, way.sync), way.sync.clip, silenced)
    _open(way, group, decision.members)


def _open(way: Way, group: Group, joins: Collection[Join]) -> None:
    """Tell the members of their group."""
    voices = {join.peer for join in joins if join.has_voice}
    quorum = way.quorum
    if not quorum.base:
        # Before the first round the group decides for itself.
        voices = {join.peer for join in joins}
        quorum = Quorum.of(way.round, voices)
    way.tally = Tally(group, way.me.peer, quorum, voices)
    way.company.attempt(join.peer for join in joins)
    way.act(events.Open(group))
    for join in joins:
        if join.peer != way.me.peer:
            way.act(events.Release(join.peer, JoinReply(group=group)))
    way.form.clear()
    way.enter(group)


def _refer(way: Way, peers: Collection[PeerId], reference: Join) -> None:
    """Tell siblings which anchor counts."""
    stale = Stale(reference.peer, reference.endpoint, reference.round.number, reference.digest)
    for peer in peers:
        if peer != way.me.peer:
            way.form.leave(peer)
            way.act(events.Release(peer, JoinReply(stale=stale)))
            # Once it has caught up it comes by itself only if it is rung meanwhile.
            way.company.forget_asking(peer)
    if way.me.peer in peers:
        way.behind(stale)


def _give_up(way: Way, stuck: Stuck) -> None:
    way.company.strand(stuck.missing, (join.peer for join in way.form.joins))
    reason = way.company.why_stranded(way.now, "may have committed it" if stuck.may_have else "may go on without us")
    way.send_away(dismissal(f"{short(way.me.peer)}: {reason}"))
    way.fail(reason)


def _ring(way: Way, peers: Collection[PeerId], pause: float) -> None:
    for peer in peers:
        if way.company.may_ask(peer, pause, way.now):
            way.company.ask(peer, way.now)
            way.act(events.Ring(way.company.contact(peer)))


def _in_doubt(way: Way) -> set[PeerId]:
    """Members of groups that may have committed the round."""
    found: set[PeerId] = set()
    for join in way.form.joins:
        if join.doubt is not None:
            way.company.meet(join.doubt.members)
            found.update(contact.peer for contact in join.doubt.members)
    return found
