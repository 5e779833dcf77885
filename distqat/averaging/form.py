"""Who is in a round, and when it starts: the decisions of a leader, without its calls and its clock. Pure.

Siblings join, leave when their call breaks, and join again. The leader is one of them; it decides nothing before it
has joined itself. A round never waits for a sibling that is lost, or says that it is held up; for one that lives it
waits as long as such siblings took before (`Patience`), for a shorter time if none of those who are missing answers,
and for one that says it takes part elsewhere as long as for any. It starts only if those who have joined decide
(`Quorum`; the first round: among all that the directory has), and if nothing else may have come of the round before
(`doubts`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from distqat.averaging import doubts
from distqat.averaging.group import Join
from distqat.averaging.quorum import Quorum
from distqat.averaging.waits import Patience
from distqat.ids import PeerId


@dataclass(frozen=True)
class Others:
    """What a leader knows of those who have not joined."""

    expected: Collection[PeerId] = ()
    """Live siblings that are waited for."""
    live: Collection[PeerId] = ()
    """All that the directory has, also those that are lost to this round."""
    engaged: Collection[PeerId] = ()
    """Those that take part in this round elsewhere."""
    gone: Collection[PeerId] = ()
    """Those that are gone for sure, or have been silent for so long that they are taken for dead."""
    absent: Collection[PeerId] = ()
    """Those of them that tell nobody what they know: not who lives again, with nothing to decide."""
    silent: Collection[PeerId] = ()
    """Those that have been asked and did not answer, or cannot be asked."""
    quiet: Collection[PeerId] = ()
    """Those that did not answer when they were asked last, in this call or before it."""
    held_up: Collection[PeerId] = ()
    """Those that live, and stand still in the middle of a step: nobody knows for how long."""


@dataclass(frozen=True)
class Start:
    """These are the members."""

    members: tuple[Join, ...]


@dataclass(frozen=True)
class Settle:
    """These vote again on a result of that digest, which some of them hold."""

    members: tuple[Join, ...]
    digest: str


@dataclass(frozen=True)
class Wait:
    """For these siblings, at most until that moment."""

    until: float
    missing: tuple[PeerId, ...] = ()


@dataclass(frozen=True)
class CatchUp:
    """These siblings hold another anchor than `reference`, from whose anchor the round starts."""

    peers: tuple[PeerId, ...]
    reference: Join


@dataclass(frozen=True)
class Skip:
    """None of these siblings has anything to contribute, and all hold the anchor of `reference`: it stands."""

    peers: tuple[PeerId, ...]
    reference: Join


@dataclass(frozen=True)
class Stuck:
    """Those who are here do not decide: of `missing` nothing is known. `may_have` says that they may be further."""

    missing: tuple[PeerId, ...]
    may_have: bool = False


Decision = Start | Settle | Wait | CatchUp | Skip | Stuck


class Form:
    """The siblings that have joined at one leader."""

    def __init__(self, leader: PeerId, patience: Patience) -> None:
        self.leader = leader
        self.patience = patience
        self._joins: dict[PeerId, Join] = {}  # Who is ready, in order of arrival.
        self._arrivals: dict[PeerId, float] = {}  # When.
        self._extended = -math.inf  # Wait at least until then for those who were sent to catch up.

    def __repr__(self) -> str:
        return f"<Form {len(self._joins)} joined>"

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._joins

    @property
    def joins(self) -> tuple[Join, ...]:
        """Who is ready, in order of arrival."""
        return tuple(self._joins.values())

    def join(self, join: Join, now: float) -> None:
        """The sibling is ready; replaces what it said before."""
        self._joins[join.peer] = join
        self._arrivals[join.peer] = now

    def leave(self, peer: PeerId, call: str = "") -> None:
        """The sibling is not ready any more, or only not by that call."""
        if peer in self._joins and call in ("", self._joins[peer].call):
            del self._joins[peer], self._arrivals[peer]

    def clear(self) -> None:
        """Nobody is ready any more: the group has formed, or there will be none."""
        self._joins.clear()
        self._arrivals.clear()
        self._extended = -math.inf

    def decide(self, others: Others, quorum: Quorum, now: float) -> Decision:
        """What to do."""
        if self.leader not in self._joins:
            return Wait(math.inf, (self.leader,))
        reference = self._reference()
        behind = self._other_than(reference, same_round=False)
        if behind:
            return CatchUp(behind, reference)
        missing = tuple(sorted(peer for peer in {*others.expected, *others.engaged} if peer not in self._joins))
        deadline = self._deadline()
        if any(peer in others.engaged for peer in missing):
            # Without anybody who decides, starting without them could commit the round twice.
            deadline = self._first_arrival + self.patience.longest if quorum.base else math.inf
        elif quorum.base and _are_quiet(missing, others):
            deadline = max(self._first_arrival + self._quiet_seconds(missing, others), self._extended)
        if missing and now < deadline:
            return Wait(deadline, missing)
        differing = self._other_than(reference, same_round=True)
        if differing:
            # They come again with the right anchor, so the wait begins anew.
            self._extended = now + self.patience.longest
            return CatchUp(differing, reference)
        return self._judge(others, quorum, now, missing)

    def _judge(self, others: Others, quorum: Quorum, now: float, missed: Collection[PeerId]) -> Decision:
        """All that are waited for are here, and hold the same anchor."""
        voices = [join.peer for join in self.joins if join.has_voice]
        # Who is here without a voice has lost what it said before, as if it were gone.
        gone = {*others.gone, *(join.peer for join in self.joins if not join.has_voice)}
        fate = doubts.judge(quorum, self.joins, gone, others.absent)
        if isinstance(fate, doubts.Unsure):
            unknown = tuple(contact.peer for contact in fate.missing)
            return self._ask(unknown, others, now) or Stuck(unknown, may_have=True)
        if isinstance(fate, doubts.Settle):
            return self._stuck(self._unsettled(fate.digest, quorum, voices, others), others, now) or Settle(
                self.joins, fate.digest
            )
        if not any(join.samples for join in self._joins.values()):
            return Skip(tuple(self._joins), self._joins[self.leader])
        unknown = quorum.missing(voices, gone) if not quorum.has(voices, gone) else self._founders(quorum, others)
        if unknown:
            return self._ask(unknown, others, now) or Stuck(unknown)
        stuck = self._stuck(self._told(quorum, voices, others), others, now)
        if stuck is not None:
            return stuck
        self._learn(missed, others, quorum)
        return Start(self.joins)

    def _unsettled(self, digest: str, quorum: Quorum, voices: Collection[PeerId], others: Others) -> tuple[PeerId, ...]:
        """Who may know of another result than this one, which is about to be settled."""
        if not quorum.base:
            return self._founders(quorum, others)
        holders = {join.peer for join in self.joins if join.doubt is not None and join.doubt.digest == digest}
        return self._told(quorum, [peer for peer in voices if peer in holders], others)

    def _founders(self, quorum: Quorum, others: Others) -> tuple[PeerId, ...]:
        """Before the first round: of whom nothing is known, if those who are here do not decide among all that the
        directory has and all that have tried it with them. Siblings that are cut off from each other would each begin
        a truth of their own. Who answers is not cut off, even if it does not come."""
        if quorum.base:
            return ()
        tried = [contact.peer for contact in doubts.unresolved(self.joins, others.absent)]
        all_ = Quorum.of(self._joins[self.leader].round, {*self._joins, *others.live, *tried})
        answering = [peer for peer in others.live if peer not in others.silent and peer not in others.quiet]
        heard = {*self._joins, *answering}
        return () if all_.has(heard, others.absent) else all_.missing(heard, others.absent)

    def _told(self, quorum: Quorum, voices: Collection[PeerId], others: Others) -> tuple[PeerId, ...]:
        """Who is not here and may know of a commit that only those know who are gone; nobody if a majority decides."""
        if not quorum.base or quorum.is_majority(voices):
            return ()
        known = {*(contact.peer for contact in doubts.unresolved(self.joins, others.absent)), *others.live}
        return tuple(sorted(peer for peer in known if peer not in self and peer not in others.absent))

    def _stuck(self, missing: tuple[PeerId, ...], others: Others, now: float) -> Wait | Stuck | None:
        return (self._ask(missing, others, now) or Stuck(missing, may_have=True)) if missing else None

    def _ask(self, unknown: Collection[PeerId], others: Others, now: float) -> Wait | None:
        """A wait for siblings that matter, until it is known that they do not answer."""
        open_ = tuple(sorted(peer for peer in unknown if peer not in others.silent and peer not in others.held_up))
        wait = self.patience.quiet_seconds() if _are_quiet(open_, others) else self.patience.longest
        until = self._first_arrival + wait
        return Wait(until, open_) if open_ and now < until else None

    def _quiet_seconds(self, missing: Collection[PeerId], others: Others) -> float:
        """For siblings that do not answer; who is held up has answered, and is not waited for."""
        return 0.0 if all(peer in others.held_up for peer in missing) else self.patience.quiet_seconds()

    def _reference(self) -> Join:
        """Whose anchor counts: of the most advanced round, then what most hold, then the leader's own."""
        newest = max(join.round.number for join in self._joins.values())
        candidates = [join for join in self._joins.values() if join.round.number == newest]
        votes = Counter(join.digest for join in candidates)
        return min(candidates, key=lambda join: (-votes[join.digest], join.peer != self.leader, join.peer))

    def _other_than(self, reference: Join, same_round: bool) -> tuple[PeerId, ...]:
        number = reference.round.number
        return tuple(
            peer
            for peer, join in self._joins.items()
            if (join.round.number == number) is same_round and (not same_round or join.digest != reference.digest)
        )

    def _deadline(self) -> float:
        return max(self._first_arrival + self.patience.seconds(), self._extended)

    @property
    def _first_arrival(self) -> float:
        return min(self._arrivals.values())

    def _learn(self, missed: Collection[PeerId], others: Others, quorum: Quorum) -> None:
        if quorum.base and _are_quiet(missed, others):
            if any(peer in others.quiet for peer in missed):
                self.patience.note_quiet()
        elif missed:
            self.patience.note(self.patience.longest)
        elif len(self._arrivals) > 1:
            self.patience.note(max(self._arrivals.values()) - min(self._arrivals.values()))


def _are_quiet(missing: Collection[PeerId], others: Others) -> bool:
    """Whether there are some, and none of these answers, or none that is not held up."""
    return bool(missing) and all(peer in others.quiet or peer in others.held_up for peer in missing)
