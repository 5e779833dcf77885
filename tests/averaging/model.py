"""Siblings that are nothing but their `Round`: no network, no clock, no vectors. What happens next is drawn by lot.

Every message may be delivered, doubled, lost on its way or on its way back; siblings die and come back without memory,
links are cut. Only what the others' words rest on is kept true: an average is there when all members have taken part,
and a sibling is said to be gone only when it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from distqat.averaging import events
from distqat.averaging.events import Standing
from distqat.averaging.group import Contact, Group, Invite, Invited, Join, JoinReply, Stale, Verdict, Vote
from distqat.averaging.round import Round
from distqat.averaging.waits import Waits
from distqat.averaging.way import State
from distqat.errors import DistqatError, RoundError, StaleError
from distqat.ids import Endpoint, PeerId
from distqat.sections import SyncSection
from tests.averaging.words import round_ref

SYNC = SyncSection(warmup_steps=0, max_wait=4.0, codec="none")
WAITS = Waits.of(SYNC, 10)
ELEMENTS = 10


@dataclass(frozen=True)
class Known:
    """A committed state."""

    number: int
    digest: str
    members: tuple[PeerId, ...] = ()


@dataclass(eq=False)
class Life:
    """One life of a sibling."""

    contact: Contact
    round: Round
    known: Known | None = None
    is_alive: bool = True
    busy: object = None  # What it is busy with; an answer to anything else comes too late.
    guests: dict[PeerId, Callable[[JoinReply | DistqatError], None]] = field(default_factory=dict)
    voters: dict[str, list[Callable[[Verdict], None]]] = field(default_factory=dict)
    verdicts: dict[str, Verdict | None] = field(default_factory=dict)
    reply: Invited | DistqatError | None = None
    prepared: Known | None = None
    commits: dict[int, str] = field(default_factory=dict)
    finished: int = 0

    def __repr__(self) -> str:
        return f"<{self.contact.peer} {self.round} {self.known}>"


class Model:
    """All siblings, and all that may happen."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.lives: dict[PeerId, Life] = {}
        self.num_lives = 0
        self.pending: list[Callable[[], None]] = []  # What may happen next, in any order.
        self.entered: dict[str, set[PeerId]] = {}  # Members of an attempt that have heard of it.
        self.cuts: set[frozenset[PeerId]] = set()
        self.is_calm = False  # Nothing goes wrong any more.
        self.log: list[str] = []
        self.num_commits = 0
        for index in range(size):
            life = self.be_born(PeerId(f"p{index}"))
            self.adopt(life, Known(1, "start", tuple(PeerId(f"p{other}") for other in range(size))))
            life.round.has_voice = True

    # What happens.

    def step(self) -> None:
        """One thing happens."""
        self.now += self.random.choice([0.0, 0.0, 0.01, 0.05])
        if self.pending and self.random.random() < 0.8:
            self.pending.pop(self.random.randrange(len(self.pending)))()
            return
        life = self.random.choice(list(self.lives.values()))
        chance = self.random.random()
        if not life.is_alive:
            if chance < 0.3:
                self.be_born(life.contact.peer)
        elif life.known is None:
            self._catch_up(life)
        elif life.round.state is State.RESTING and life.round.company.impasse and chance < 0.5:
            peer = self.random.choice(life.round.company.impasse)
            if peer in life.round.company.endpoints:
                self._ring(life, life.round.company.contact(peer))
        elif life.round.state is State.RESTING:
            self._begin(life)
        elif chance < 0.05 and not self.is_calm:
            self._die(life)
        elif chance < 0.07 and not self.is_calm:
            life.busy = None
            self.feed(life, events.Stopped("enough"))
        elif chance < 0.12 and not self.is_calm:
            self._cut()
        else:
            self.feed(life, self._look(life))

    def calm(self) -> None:
        """Faults end."""
        self.is_calm = True
        self.cuts.clear()

    def be_born(self, peer: PeerId) -> Life:
        self.num_lives += 1
        contact = Contact(peer, Endpoint(peer, self.num_lives))
        life = self.lives[peer] = Life(contact, Round(contact, round_ref(0), SYNC, WAITS, f"life{self.num_lives}"))
        return life

    def _die(self, life: Life) -> None:
        if sum(other.is_alive and other.known is not None for other in self.lives.values()) > 1:
            self.log.append(f"{life.contact.peer} dies")
            life.is_alive = False

    def _cut(self) -> None:
        pair = self.random.sample(sorted(self.lives), 2)
        self.cuts ^= {frozenset(pair)}

    def _begin(self, life: Life) -> None:
        known = life.known
        assert known is not None
        self.feed(life, self._look(life))
        samples = self.random.choice([0, 1, 2])
        self.feed(
            life,
            events.Begin(
                Join(round_ref(known.number), life.contact.peer, life.contact.endpoint, samples, known.digest, ELEMENTS)
            ),
        )

    def _look(self, life: Life) -> events.Looked:
        others = [other for other in self.lives.values() if other is not life and other.known is not None]
        listed = [other for other in others if other.is_alive or self.random.random() < 0.2]
        return events.Looked({other.contact.peer: other.contact.endpoint for other in listed})

    def _catch_up(self, life: Life) -> None:
        donors = [one for one in self.lives.values() if one.is_alive and one.known and self.reaches(life, one)]
        if donors:
            donor = self.random.choice(donors).known
            assert donor is not None
            self.adopt(life, donor)

    # What siblings do.

    def feed(self, life: Life, event: events.Event) -> None:
        """Tell a sibling, and do what it does about it."""
        todo = [event]
        while todo and life.is_alive:
            for action in life.round.handle(todo.pop(0), self.now):
                if isinstance(action, events.Commit):
                    todo.insert(0, self._commit(life, action.digest))
                else:
                    self._do(life, action)

    def adopt(self, life: Life, known: Known) -> None:
        """It holds this state now."""
        life.known = known
        self.feed(life, self._moved(known))

    def _moved(self, known: Known) -> events.Moved:
        return events.Moved(known.number, known.digest, known.members, ELEMENTS)

    def _commit(self, life: Life, digest: str) -> events.Event:
        prepared = life.prepared
        assert prepared is not None
        assert prepared.digest == digest
        self._check(life, prepared)
        life.known = prepared
        return self._moved(prepared)

    def _check(self, life: Life, result: Known) -> None:
        number = result.number - 1
        self.num_commits += 1
        self.log.append(f"{life.contact.peer} commits {result.digest}")
        assert number not in life.commits, "one round, two results"
        life.commits[number] = result.digest
        for other in self.lives.values():
            if other.is_alive and number in other.commits:
                assert other.commits[number] == result.digest, f"{other} and {life} differ: {self.log}"

    def _do(self, life: Life, action: events.Action) -> None:
        match action:
            case events.Ask(leader, join):
                self._ask(life, leader, join)
            case events.Exchange(group):
                self._exchange(life, group)
            case events.Cast(leader, vote):
                self._cast(life, leader, vote)
            case events.Fetch():
                self._fetch(life, action)
            case events.Ring(contact):
                self._ring(life, contact)
            case events.Open(group):
                life.verdicts[group.attempt] = None
            case events.Release(peer, reply):
                guest = life.guests.pop(peer, None)
                if guest is not None:
                    guest(reply)
            case events.Reply(reply):
                life.reply = reply
            case events.Pronounce(attempt, verdict):
                if life.verdicts[attempt] is None:
                    life.verdicts[attempt] = verdict
                for voter in life.voters.pop(attempt, []):
                    voter(verdict)
            case events.Finish():
                life.finished += 1
                life.busy = None

    def reaches(self, life: Life, other: Life) -> bool:
        return frozenset((life.contact.peer, other.contact.peer)) not in self.cuts

    def there(self, life: Life, contact: Contact) -> Life | None:
        """Who answers there; the dead do not, and a new life answers elsewhere."""
        other = self.lives[contact.peer]
        return other if other.contact == contact and other.is_alive and self.reaches(life, other) else None

    def is_gone(self, contact: Contact) -> bool:
        other = self.lives[contact.peer]
        return other.contact != contact or not other.is_alive

    def _fails(self, chance: float = 0.1) -> bool:
        return not self.is_calm and self.random.random() < chance

    def later(self, what: Callable[[], None]) -> None:
        self.pending.append(what)

    def _answer(self, life: Life, busy: object, event: events.Event) -> None:
        """What it is busy with comes to this, at some time."""

        def arrive() -> None:
            if life.busy is busy:
                life.busy = None
                self.feed(life, event)

        self.later(arrive)

    def _unreached(self, life: Life, busy: object, contact: Contact) -> None:
        gone = self.is_gone(contact) and self.random.random() < 0.8
        kind = events.Unreached("it broke", gone) if gone or self.random.random() < 0.5 else events.Declined("late")
        self._answer(life, busy, kind)

    def _ask(self, life: Life, leader: Contact, join: Join) -> None:
        busy = life.busy = object()

        def give_up() -> None:
            there = self.there(life, leader)
            if life.busy is busy:
                self._unreached(life, busy, leader)
            if there is not None and there.guests.get(join.peer) is answered:
                del there.guests[join.peer]
                self.feed(there, events.Left(join.peer, join.call))

        def answered(reply: JoinReply | DistqatError) -> None:
            if self._fails():
                self.later(give_up)
            elif isinstance(reply, RoundError):
                self._answer(life, busy, events.Dismissed(reply.reason))
            elif isinstance(reply, DistqatError):
                self._answer(life, busy, events.Declined(reply.reason))
            elif reply.group is not None:
                self._answer(life, busy, events.Grouped(reply.group))
            else:
                assert reply.stale is not None
                self._answer(life, busy, events.Outdated(reply.stale))

        def arrive() -> None:
            there = self.there(life, leader)
            if there is None or there.known is None or life.busy is not busy or self._fails():
                give_up()
                return
            before = there.guests.pop(join.peer, None)
            if before is not None:
                before(StaleError("asked again"))
            there.guests[join.peer] = answered
            self.feed(there, events.Joined(join))
            if self._fails(0.2):
                self.later(give_up)
            elif there.guests.get(join.peer) is answered:
                # If the leader dies meanwhile, the call breaks.
                self.later(wait)

        def wait() -> None:
            if not life.is_alive or (life.busy is busy and self.there(life, leader) is None):
                give_up()
            elif life.busy is busy:
                self.later(wait)

        self.later(arrive)

    def _exchange(self, life: Life, group: Group) -> None:
        busy = life.busy = object()
        self.entered.setdefault(group.attempt, set()).add(life.contact.peer)
        known = life.known
        assert known is not None
        members = tuple(member.peer for member in group.members)

        def end() -> None:
            if life.busy is not busy or not life.is_alive:
                return
            others = [member.contact for member in group.members if member.contact != life.contact]
            broken = [contact for contact in others if self.there(life, contact) is None]
            is_short = self.entered[group.attempt] != set(members) and self.random.random() < 0.1
            if broken or is_short or self._fails():
                life.busy = None
                lost = self.random.choice(broken).peer if broken else self.random.choice(["", *members])
                self.feed(life, events.Broken("it broke", lost))
            elif self.entered[group.attempt] == set(members):
                life.busy = None
                life.prepared = Known(known.number + 1, f"{known.digest[-40:]}/{group.attempt}", members)
                self.feed(life, events.Averaged(life.prepared.digest))
            else:
                self.later(end)

        self.later(end)

    def _cast(self, life: Life, leader: Contact, vote: Vote) -> None:
        busy = life.busy = object()

        def heard(verdict: Verdict) -> None:
            if self._fails(0.2):
                self._unreached(life, busy, leader)
            else:
                self._answer(life, busy, events.Heard(verdict))

        def arrive() -> None:
            there = self.there(life, leader)
            if there is None or self._fails():
                self._unreached(life, busy, leader)
            elif vote.attempt not in there.verdicts:
                self._answer(life, busy, events.Declined("not known"))
            elif (verdict := there.verdicts[vote.attempt]) is not None:
                heard(verdict)
            else:
                there.voters.setdefault(vote.attempt, []).append(heard)
                self.feed(there, events.Voted(vote))
                self.later(wait)

        def wait() -> None:
            if life.busy is busy and self.there(life, leader) is None:
                self._unreached(life, busy, leader)
            elif life.busy is busy and life.is_alive:
                self.later(wait)

        self.later(arrive)

    def _fetch(self, life: Life, fetch: events.Fetch) -> None:
        busy = life.busy = object()

        def arrive() -> None:
            if life.busy is not busy or not life.is_alive:
                return
            life.busy = None
            donor = self.there(life, Contact(fetch.stale.donor, fetch.stale.endpoint))
            assert life.known is not None
            if donor is None or donor.known is None or donor.known.number < life.known.number or self._fails():
                self.feed(life, events.Missed(fetch.stale.donor, "it broke"))
            else:
                self.adopt(life, donor.known)

        self.later(arrive)

    def _ring(self, life: Life, contact: Contact) -> None:
        state = life.round.round
        is_beside = life.round.state is State.RESTING

        def arrive() -> None:
            there = self.there(life, contact)
            wanted = (State.RESTING,) if is_beside else (State.FORMING, State.COUNTING)
            if life.round.state not in wanted or not life.is_alive:
                return
            if is_beside and contact.peer not in life.round.company.impasse:
                return
            if there is None and not self._fails(0.3):
                standing = Standing.GONE if self.is_gone(contact) else Standing.UNREACHABLE
                self.feed(life, events.Answered(contact, standing, "it broke"))
            elif there is None or self._fails():
                self.feed(life, events.Answered(contact, Standing.SILENT, "late"))
            elif there.known is None:
                self.feed(life, events.Answered(contact, Standing.AWAY, "no state"))
            else:
                self._called(life, there, contact, state.number)

        self.later(arrive)

    def _called(self, life: Life, there: Life, contact: Contact, number: int) -> None:
        self.feed(there, events.Called(Invite(round_ref(number), life.contact.peer, life.contact.endpoint)))
        reply = there.reply
        known = there.known
        assert known is not None
        if isinstance(reply, StaleError):
            self.feed(life, events.Outdated(Stale(contact.peer, contact.endpoint, known.number, known.digest)))
        elif isinstance(reply, RoundError):
            self.feed(life, events.Answered(contact, Standing.AGAINST, reply.reason))
        elif isinstance(reply, Invited) and there.round.state is State.RESTING and self._fails(0.3):
            self.feed(life, events.Answered(contact, Standing.HELD_UP, reply.reason))
        elif isinstance(reply, Invited):
            standing = Standing.COMING if reply.joining else Standing.ENGAGED
            self.feed(life, events.Answered(contact, Standing.LEADING if reply.leading else standing, reply.reason))
