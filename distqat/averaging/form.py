"""Who is in a round, and when it starts: the decisions of a leader, without its calls and its clock.

Siblings join, leave when their call breaks, and join again. The leader is one of them; it decides nothing before it
has joined itself. A round never waits for a sibling that is lost; for one that lives it waits as long as such
siblings took before (`Patience`), and for one that says it takes part elsewhere as long as that lasts: starting
without it could commit the same round twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from distqat.averaging.group import Join
from distqat.averaging.waits import Patience
from distqat.ids import PeerId


@dataclass(frozen=True)
class Start:
    """These are the members."""

    members: tuple[Join, ...]


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


Decision = Start | Wait | CatchUp | Skip


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

    @property
    def joins(self) -> tuple[Join, ...]:
        """Who is ready, in order of arrival."""
        return tuple(self._joins.values())

    def join(self, join: Join, now: float) -> None:
        """The sibling is ready; replaces what it said before."""
        self._joins[join.peer] = join
        self._arrivals[join.peer] = now

    def leave(self, peer: PeerId) -> None:
        """The sibling is not ready any more."""
        self._joins.pop(peer, None)
        self._arrivals.pop(peer, None)

    def clear(self) -> None:
        """Nobody is ready any more: the group has formed, or there will be none."""
        self._joins.clear()
        self._arrivals.clear()
        self._extended = -math.inf

    def decide(self, expected: Collection[PeerId], engaged: Collection[PeerId], now: float) -> Decision:
        """What to do. `expected` are the live siblings, `engaged` those that take part in the round elsewhere."""
        if self.leader not in self._joins:
            return Wait(math.inf, (self.leader,))
        reference = self._reference()
        behind = self._other_than(reference, same_round=False)
        if behind:
            return CatchUp(behind, reference)
        missing = tuple(sorted(peer for peer in {*expected, *engaged} if peer not in self._joins))
        deadline = self._deadline()
        if any(peer in engaged for peer in missing):
            return Wait(math.inf, missing)
        if missing and now < deadline:
            return Wait(deadline, missing)
        differing = self._other_than(reference, same_round=True)
        if differing:
            # They come again with the right anchor, so the wait begins anew.
            self._extended = now + self.patience.longest
            return CatchUp(differing, reference)
        if not any(join.samples for join in self._joins.values()):
            return Skip(tuple(self._joins), reference)
        self._learn(bool(missing))
        return Start(self.joins)

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
        return max(min(self._arrivals.values()) + self.patience.seconds(), self._extended)

    def _learn(self, missed_someone: bool) -> None:
        spread = max(self._arrivals.values()) - min(self._arrivals.values())
        if len(self._arrivals) > 1 or missed_someone:
            self.patience.note(self.patience.longest if missed_someone else spread)
