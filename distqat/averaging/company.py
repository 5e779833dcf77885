"""What a sibling knows of the others: who lives, who is out of reach, who is gone for sure, who has failed. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from distqat.averaging.discipline import Discipline
from distqat.averaging.group import Contact
from distqat.averaging.waits import Waits
from distqat.ids import Endpoint, PeerId

MOST_MISTAKES = 16
"""Of those that are counted: by then the patience is the longest there is."""


class Company:
    """The others, as one sibling sees them."""

    def __init__(self, me: PeerId, waits: Waits) -> None:
        self.me = me
        self.waits = waits
        self.discipline = Discipline(waits.form)
        self.endpoints: dict[PeerId, Endpoint] = {}  # Where they answer, or last did.
        self.live: set[PeerId] = set()  # In the directory now, with committed state.
        self.base: tuple[PeerId, ...] = ()  # The group that committed the last round.
        self.gone: set[PeerId] = set()  # Of the base or a doubt, and gone for sure: the life that took part is over.
        self.back: set[PeerId] = set()  # Of these, who live again, and may have learned of a commit since.
        self._graves: dict[PeerId, Endpoint | None] = {}  # Where those who are gone last answered.
        self.lost: dict[PeerId, str] = {}  # This round does not wait for them, and why.
        self.left_out: dict[PeerId, str] = {}  # By a verdict of this round, and why.
        self.muted: dict[PeerId, str] = {}  # Their contributions to this round are not taken, and why.
        self.declined: set[PeerId] = set()  # Did not lead when asked.
        self.engaged: set[PeerId] = set()  # Take part in this round at another leader.
        self.silent: set[PeerId] = set()  # Were asked in this call of `synchronise`, and will not come.
        self.held_up: set[PeerId] = set()  # Were asked in this call, and stand still in the middle of a step.
        self.asking: set[PeerId] = set()  # Are being asked now.
        self.impasse: tuple[PeerId, ...] = ()  # For want of these the last call failed, and nothing has changed.
        self.stranded: frozenset[PeerId] = frozenset()  # Who was here then.
        self.seen: set[PeerId] = set()  # Members of the present attempt that the directory had when it began.
        self._asked: dict[PeerId, float] = {}  # When they last were.
        self._silent_since: dict[PeerId, float] = {}  # When it was first seen that they do not answer.
        self._suspected: set[PeerId] = set()  # Those of them that may only be slow: no call to them broke.
        self._mistakes: dict[PeerId, int] = {}  # How often they were heard from after that.

    def __repr__(self) -> str:
        return f"<Company {len(self.live)} live, {len(self.lost)} lost, {len(self.gone)} gone>"

    @property
    def given_up(self) -> set[PeerId]:
        """Those that this round is taken without."""
        return self.lost.keys() | self.left_out.keys()

    @property
    def expected(self) -> set[PeerId]:
        """Those that a forming round waits for."""
        return self.live - self.given_up

    @property
    def quiet(self) -> set[PeerId]:
        """Those that did not answer when they were asked last, in this call or an earlier one."""
        return set(self._silent_since)

    def look(self, ready: Mapping[PeerId, Endpoint]) -> None:
        """The directory has these."""
        self.live = set(ready) - {self.me}
        self.back |= {peer for peer in self.gone & self.live if ready[peer] != self._graves.get(peer)}
        self.endpoints.update(ready)

    def meet(self, contacts: Iterable[Contact]) -> None:
        """Learn where siblings answer of which the directory does not know."""
        for contact in contacts:
            self.endpoints.setdefault(contact.peer, contact.endpoint)

    def contact(self, peer: PeerId) -> Contact:
        """Where it answers."""
        return Contact(peer, self.endpoints[peer])

    def heard_from(self, contact: Contact) -> None:
        """The sibling has called: it is not lost, whatever it looked like."""
        self._end_impasse({contact.peer})
        self.endpoints[contact.peer] = contact.endpoint
        self.back |= self.gone & {contact.peer}
        self.lost.pop(contact.peer, None)
        self._clear(contact.peer)
        for group in (self.declined, self.silent, self.held_up):
            group.discard(contact.peer)

    def hold_up(self, contact: Contact) -> None:
        """The sibling answers that its step has come to a standstill: it lives, and nobody knows when it comes."""
        impasse = self.impasse
        self.heard_from(contact)
        self.engaged.discard(contact.peer)
        self.held_up.add(contact.peer)
        self.impasse = impasse

    def strand(self, missing: Iterable[PeerId], present: Iterable[PeerId]) -> None:
        """A round has failed for want of some siblings. Another of those who were here would fail as well."""
        self.impasse, self.stranded = tuple(missing), frozenset(present)

    def is_stranded(self, now: float) -> bool:
        """Whether a round would fail again, as nothing was heard of those who are missing, and none is dead yet."""
        return bool(self.impasse) and self.seconds_until_dead(self.impasse, now) > 0

    def why_stranded(self, now: float, what: str = "may go on without us") -> str:
        """For want of whom a round fails, in words."""
        number, total = len(self.impasse), len(self.base) or len(self.stranded.union(self.impasse))
        if self.held_up.issuperset(self.impasse):
            return f"{number} of {total} siblings stand still in a step and {what}"
        seconds = self.seconds_until_dead(self.impasse, now)
        return (
            f"{number} of {total} siblings cannot be reached and {what}; "
            f"waiting {seconds:.0f} s before they are taken for dead"
        )

    def _end_impasse(self, peers: Iterable[PeerId]) -> None:
        if not set(self.impasse).isdisjoint(peers):
            self.impasse = ()

    def lose(self, peer: PeerId, reason: str) -> bool:
        """Go on without it; whether that is news."""
        self.engaged.discard(peer)
        is_news = peer not in self.lost
        self.lost.setdefault(peer, reason)
        return is_news

    def miss(self, peer: PeerId, now: float, is_silent: bool = False) -> None:
        """It does not answer; `is_silent`: nor did a call to it break, so it may only be slow."""
        self._silent_since.setdefault(peer, now)
        self.silent.add(peer)
        if is_silent:
            self._suspected.add(peer)

    def patience(self, peer: PeerId) -> float:
        """Seconds without an answer after which it is silent: twice as long for each time that this was wrong."""
        return min(self.waits.form, self.waits.invite * 2.0 ** min(self._mistakes.get(peer, 0), MOST_MISTAKES))

    def bury(self, peer: PeerId) -> None:
        """The life of it that took part in rounds is over for sure."""
        self._end_impasse({peer})
        self.gone.add(peer)
        self.back.discard(peer)
        self._graves[peer] = self.endpoints.get(peer)
        self.silent.add(peer)
        self.engaged.discard(peer)

    def ask(self, peer: PeerId, now: float) -> None:
        """It is asked now."""
        self.asking.add(peer)
        self._asked[peer] = now

    def forget_asking(self, peer: PeerId) -> None:
        """It can be asked at once."""
        self.asking.discard(peer)
        self._asked.pop(peer, None)

    def refuse(self, peer: PeerId, reason: str) -> None:
        """It lives, and will not come."""
        self.lose(peer, reason)
        self.silent.add(peer)

    def may_ask(self, peer: PeerId, pause: float, now: float) -> bool:
        """Whether it can be asked, and was not just now."""
        return peer in self.endpoints and peer not in self.asking and now >= self._asked.get(peer, -math.inf) + pause

    def dead(self, now: float) -> set[PeerId]:
        """Gone for sure, or silent for so long that they are taken for dead: they do not decide any more."""
        return self.gone | self._late(now)

    def absent(self, now: float) -> set[PeerId]:
        """Who tells nobody what was committed: the dead, but for those who live again."""
        return (self.gone - self.back) | self._late(now)

    def _late(self, now: float) -> set[PeerId]:
        """Silent for too long, and asked again in this call: this process may have stood still, and heard nobody."""
        late = {peer for peer, since in self._silent_since.items() if now >= since + self.waits.presumed}
        return {peer for peer in late if peer in self.silent or peer not in self.endpoints}

    def seconds_until_dead(self, peers: Iterable[PeerId], now: float) -> float:
        """Until one more of these is taken for dead; the whole wait if they have answered."""
        return min((self._silent_since.get(peer, now) + self.waits.presumed - now for peer in peers), default=0.0)

    def unreachable(self, peers: Iterable[PeerId]) -> set[PeerId]:
        """Those who have been asked in vain, that nobody knows where to ask, or that may not join."""
        return {peer for peer in peers if peer in self.silent | self.left_out.keys() or peer not in self.endpoints}

    def begin(self) -> None:
        """A call of `synchronise` begins: everybody is given another chance."""
        for known in (self.lost, self.left_out, self.muted):
            known.clear()
        self.declined.clear()
        self.engaged.clear()
        self.silent.clear()
        self.held_up.clear()
        self.asking.clear()
        self._asked.clear()

    def advance(self, base: Iterable[PeerId]) -> None:
        """Another round is committed, by this group; who was left out may come again."""
        self.base, self.impasse = tuple(base), ()
        self.left_out.clear()
        self.muted.clear()
        for grave in (self.gone, self.back, self._graves):
            grave.clear()
        self.engaged.clear()
        known = {*self.base, *self.live}
        self.endpoints = {peer: where for peer, where in self.endpoints.items() if peer in known}
        self._silent_since = {peer: since for peer, since in self._silent_since.items() if peer in known}
        self._mistakes = {peer: number for peer, number in self._mistakes.items() if peer in known}
        self._suspected &= known
        self.discipline.forget(known)

    def attempt(self, members: Iterable[PeerId]) -> None:
        """An attempt begins with these, who were heard from just now."""
        here = set(members)
        self.seen = self.live & here
        self.silent -= here
        self._end_impasse(here)
        for peer in here:
            self._clear(peer)

    def _clear(self, peer: PeerId) -> None:
        """It is there."""
        self._silent_since.pop(peer, None)
        if peer in self._suspected:
            self._suspected.remove(peer)
            self._mistakes[peer] = self._mistakes.get(peer, 0) + 1

    def hearsay(self) -> tuple[Contact, ...]:
        """Members of the base that the directory has lost, for a leader that may not know them."""
        return tuple(self.contact(peer) for peer in self.base if peer in self.endpoints and peer not in self.live)
