"""Where one sibling is on its way through a round, and the steps that leader and member have in common. Pure."""

from __future__ import annotations

import enum
import math
from dataclasses import replace

from distqat.averaging import events, rendezvous
from distqat.averaging.company import Company
from distqat.averaging.form import Form
from distqat.averaging.group import Contact, Doubt, Group, Invite, Join, JoinReply, RoundRef, Stale, Verdict, Vote
from distqat.averaging.quorum import Quorum
from distqat.averaging.vote import Tally
from distqat.averaging.waits import Patience, Waits
from distqat.errors import DistqatError, RefusedError, RoundError
from distqat.ids import PeerId, short
from distqat.sections import SyncSection

PAUSE = 0.05
"""Seconds before the next attempt when nobody was lost; doubled with every failure, up to ten times this."""


class State(enum.Enum):
    """Where a sibling is."""

    RESTING = "resting"
    FORMING = "forming"
    LEADING = "leading"
    COUNTING = "counting"
    JOINING = "joining"
    FOLLOWING = "following"
    VOTING = "voting"
    CATCHING_UP = "catching up"
    PAUSING = "pausing"


class Way:
    """What one sibling knows. `life` tells it from every sibling of its name, before and after."""

    def __init__(self, me: Contact, origin: RoundRef, sync: SyncSection, waits: Waits, life: str) -> None:
        self.me = me
        self.sync = sync
        self.waits = waits
        self.state = State.RESTING
        self.round = origin  # The next one of this sibling.
        self.digest = ""  # Of what it has committed.
        self.has_voice = False  # It was in the group of the round before, in this life.
        self.doubt: Doubt | None = None  # What it took part in without hearing what became of it.
        self.quorum = Quorum()  # Who decides about the round.
        self.mine: Join | None = None  # What it brings; None while resting.
        self.leader = me  # Of the attempt that it takes part in.
        self.group: Group | None = None  # Of that attempt; None while there is none.
        self.tally: Tally | None = None  # Of that attempt, if it leads.
        self.invite: Invite | None = None  # The latest invitation that still counts.
        self.form = Form(me.peer, Patience(waits.form))
        self.company = Company(me.peer, waits)
        self.refused: dict[PeerId, str] = {}  # Whose contributions the attempt is without, and why.
        self.wake = math.inf  # When to look again at the latest.
        self.counting_since = 0.0  # When this leader had voted itself.
        self.missing: tuple[PeerId, ...] = ()  # For whom it waits.
        self.donor: PeerId | None = None  # From whom it catches up.
        self.now = 0.0
        self.actions: list[events.Action] = []  # Since the present event.
        self._life = life
        self._count = 0  # Of calls and attempts so far, for their names.
        self._earlier: Doubt | None = None  # What was in doubt before the present attempt; void once that has averaged.
        self._granted = ""  # Digest that its group has committed without it.
        self._failures = 0  # Attempts of this call that came to nothing.

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.round.number}: {self.state.value}, {len(self.form.joins)} joined>"

    @property
    def is_wanted(self) -> bool:
        """Whether another sibling waits for this one."""
        return self.invite is not None or self.has_guests

    @property
    def has_guests(self) -> bool:
        """Whether another sibling waits here."""
        return any(join.peer != self.me.peer for join in self.form.joins)

    @property
    def is_leading(self) -> bool:
        """Whether this sibling leads the attempt."""
        return self.leader == self.me

    @property
    def patience(self) -> float:
        """Seconds after which a leader that answers nothing is left. Before the first round nobody in particular
        decides, and a sibling that only believes the others silent would found the run once more."""
        return self.company.patience(self.leader.peer) if self.quorum.base else math.inf

    def act(self, action: events.Action) -> None:
        """Have it done."""
        self.actions.append(action)

    def name(self) -> str:
        """Of the next call or attempt: no other ever has it."""
        self._count += 1
        return f"{self.round.number}-{self._life}-{self._count}"

    # From one state to the next.

    def begin(self, join: Join) -> None:
        """A round is wanted."""
        if self.company.is_stranded(self.now) and not self.is_wanted:
            # As the call before: nothing has changed, and nobody else wants one.
            self.act(events.Finish(f"{self.round}: {self.company.why_stranded(self.now)}"))
            return
        self.company.begin()
        self._failures = 0
        self.mine = join
        self.choose()

    def choose(self) -> None:
        """Go to who waits here, to who has invited, else to the first in the order."""
        self.leader, self.wake, self.group, self.tally = self._where(), math.inf, None, None
        self.company.asking.clear()
        if self.is_leading:
            self.state = State.FORMING
            self.form.join(self._joining(), self.now)
            return
        self.state = State.JOINING
        self.send_away(RefusedError(f"{short(self.leader.peer)} leads {self.round}"))
        self.act(events.Ask(self.leader, self._joining(), self.patience))

    def pause(self) -> None:
        """The next attempt comes in a moment."""
        self.state = State.PAUSING
        self.form.leave(self.me.peer)
        self._failures += 1
        self.wake = self.now + min(PAUSE * 2.0 ** (self._failures - 1), 10 * PAUSE)

    def behind(self, stale: Stale, group: Group | None = None) -> None:
        """Another anchor counts than this sibling has; `group` if that has committed it with this sibling in it."""
        self.form.leave(self.me.peer)
        self.group = self.tally = None
        if stale.digest == self.digest:
            # Nobody has trained since the round before: the anchor stands, and who invited has its answer.
            self.spend(self.leader.peer)
            self.finish()
            return
        self.state, self.donor = State.CATCHING_UP, stale.donor
        if self.doubt is not None and self.doubt.digest == stale.digest:
            self.act(events.Commit(stale.digest))
        else:
            self.act(events.Fetch(stale, group))

    def move(self, event: events.Moved) -> None:
        """Another state is committed here."""
        is_own = self.doubt is not None and self.doubt.digest == event.digest
        is_ahead = event.number > self.round.number
        self.has_voice = is_own or self._granted == event.digest
        self.doubt, self._earlier, self._granted = None, None, ""
        self.round, self.digest = replace(self.round, number=event.number), event.digest
        self.company.advance(event.members)
        self.quorum = Quorum.of(self.round, event.members)
        self._send_on()
        if self.state is State.RESTING:
            return
        has_more = self.state is State.CATCHING_UP and not is_own and (self.is_wanted or not is_ahead)
        if has_more and self.mine is not None:
            # What it has learned belongs to an anchor that is gone: from here on it only receives.
            self.mine = replace(
                self.mine, round=self.round, digest=event.digest, elements=event.elements, samples=0, norm=0.0
            )
            self.choose()
        else:
            self.finish()

    def settle(self, verdict: Verdict) -> None:
        """The attempt is over, and this is what became of it."""
        assert self.group is not None
        group = self.group
        self.act(events.Conclude(group.attempt))
        if not verdict.committed:
            self._retry(group, verdict)
        elif self.doubt is not None and self.doubt.digest == verdict.digest:
            for member in group.contributors:
                self.company.discipline.forgive(member.peer)
            self.act(events.Commit(verdict.digest))
        else:
            # Its contribution is in what the others hold.
            self._granted = verdict.digest
            donor = group.find(verdict.donor)
            where = donor.endpoint if donor is not None else self.leader.endpoint
            stale = Stale(PeerId(verdict.donor), where, self.round.number + 1, verdict.digest)
            self.behind(stale, group if not group.settles else None)

    def fail(self, reason: str) -> None:
        """The call ends without a round; who waits here looks elsewhere."""
        self.act(events.Finish(f"{self.round}: {reason}"))
        self.rest(RefusedError(f"{short(self.me.peer)} gave up {self.round}: {reason}"))

    def finish(self) -> None:
        """The call ends with what is committed."""
        self.act(events.Finish())
        self._stand_by()

    def rest(self, error: DistqatError) -> None:
        """No round is wanted any more."""
        self.invite = None
        self.send_away(error)
        self._stand_by()

    def _stand_by(self) -> None:
        self.form.leave(self.me.peer)
        self.state, self.mine, self.group, self.tally = State.RESTING, None, None, None
        self.wake, self.leader = math.inf, self.me

    def _retry(self, group: Group, verdict: Verdict) -> None:
        if not group.settles:
            self.forget_attempt()
        self.company.declined.clear()
        for name in verdict.lost:
            self._leave_out(PeerId(name), verdict.reason)
        for name in verdict.blamed:
            self._blame(PeerId(name), verdict.reason)
        if self.me.peer in self.company.left_out:
            self.fail(f"{short(self.me.peer)} is left out: {verdict.reason}")
        elif verdict.lost or verdict.blamed:
            self.choose()
        else:
            self.pause()

    def _blame(self, peer: PeerId, reason: str) -> None:
        """The next attempt is without its contribution; if it was already, without the sibling."""
        self.company.discipline.blame(peer, reason, self.now)
        if peer in self.company.muted:
            self._leave_out(peer, reason)
        else:
            self.company.muted[peer] = reason
            self.act(events.Report(peer, reason, is_refused=True))

    def _leave_out(self, peer: PeerId, reason: str) -> None:
        self.company.left_out[peer] = reason
        if peer != self.me.peer:
            self.lose(peer, reason)

    # Votes.

    def enter(self, group: Group) -> None:
        """The group has formed, with this sibling in it."""
        self.group = group
        self.company.asking.clear()
        self.state = State.LEADING if self.is_leading else State.FOLLOWING
        if not group.settles:
            # Its leader may have counted on a sibling that is not there any more, so what was in doubt stays so.
            self._earlier = self.doubt
            self._doubt(group, self.doubt.digest if self.doubt is not None else "")
            self.act(events.Exchange(group))
        elif self.doubt is not None and self.doubt.digest == group.settles:
            self.cast(Vote(group.attempt, self.me.peer, True, group.settles))
        else:
            self._doubt(group, self.doubt.digest if self.doubt is not None else "")
            self.cast(Vote(group.attempt, self.me.peer, False, reason=f"{short(self.me.peer)} does not hold it"))

    def forget_attempt(self) -> None:
        """Nobody has committed the present attempt, and nobody will: in doubt is what was so before."""
        self.doubt, self._earlier = self._earlier, None

    def cast(self, vote: Vote) -> None:
        """What the attempt came to here."""
        assert self.group is not None
        if vote.prepared:
            if not self.group.settles:
                # All members have taken part: none of them had committed anything else.
                self.doubt = self._earlier = None
            self._doubt(self.group, vote.digest)
        if self.tally is not None:
            self.state, self.counting_since = State.COUNTING, self.now
            self.tally.cast(vote)
        else:
            self.state = State.VOTING
            self.act(events.Cast(self.leader, vote, self.patience))

    def _doubt(self, group: Group, digest: str) -> None:
        known = self.doubt.members if self.doubt is not None else ()
        members = {contact.peer: contact for contact in (*known, *(one.contact for one in group.members))}
        self.doubt = Doubt(digest, tuple(members.values()))

    # Others.

    def lose(self, peer: PeerId, reason: str) -> None:
        """Go on without the sibling."""
        self.spend(peer)
        if self.company.lose(peer, reason):
            self.act(events.Report(peer, reason))

    def accept(self, invite: Invite) -> None:
        """Join there next."""
        self.invite = invite

    def spend(self, leader: PeerId) -> None:
        """An invitation of that sibling counts no more."""
        if self.invite is not None and self.invite.leader == leader:
            self.invite = None

    def send_away(self, error: DistqatError) -> None:
        """Let all who wait here look elsewhere."""
        for join in self.form.joins:
            if join.peer != self.me.peer:
                self.act(events.Release(join.peer, error))
        self.form.clear()

    def offer(self) -> Stale:
        """This sibling as a donor of what it has committed."""
        return Stale(self.me.peer, self.me.endpoint, self.round.number, self.digest)

    def _send_on(self) -> None:
        """Tell those who wait here and are behind."""
        if self.invite is not None and self.invite.round.number < self.round.number:
            self.invite = None
        for join in self.form.joins:
            if join.round.number < self.round.number:
                self.form.leave(join.peer)
                if join.peer != self.me.peer:
                    self.act(events.Release(join.peer, JoinReply(stale=self.offer())))

    def _where(self) -> Contact:
        me, invite = self.me.peer, self.invite
        if self.has_guests and (invite is None or rendezvous.outranks(invite.round, me, invite.leader)):
            return self.me
        if invite is not None:
            return Contact(invite.leader, invite.endpoint)
        able = (self.company.expected - self.company.declined - self.company.quiet) | {me}
        first = rendezvous.order(self.round, able)[0]
        return self.me if first == me else self.company.contact(first)

    def _joining(self) -> Join:
        assert self.mine is not None
        return replace(
            self.mine, call=self.name(), has_voice=self.has_voice, doubt=self.doubt, contacts=self.company.hearsay()
        )


def dismissal(reason: str) -> RoundError:
    """For siblings that wait at a leader which cannot have a round now: they would fare no better elsewhere."""
    return RoundError(reason)
