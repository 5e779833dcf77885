"""Who decides about a round: the siblings of the group that committed the one before. Pure.

Two groups that both have a quorum share a sibling that lives, and it tells the second of the first. So a round has one
result, as long as nobody is taken for dead who is not. A quorum is more than half of that group, or half of it with the
first in the order of the round; or all of it that is left, when the others are gone for sure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from distqat.averaging import rendezvous
from distqat.averaging.group import RoundRef
from distqat.ids import PeerId


@dataclass(frozen=True)
class Quorum:
    """Who decides; nobody in particular before the first round."""

    base: tuple[PeerId, ...] = ()
    first: PeerId | None = None
    """Whose half wins a tie."""

    @classmethod
    def of(cls, round_: RoundRef, base: Iterable[PeerId]) -> Quorum:
        """Of the round, when this group has committed the one before."""
        ordered = rendezvous.order(round_, base)
        return cls(tuple(sorted(ordered)), ordered[0] if ordered else None)

    def has(self, voices: Collection[PeerId], gone: Collection[PeerId]) -> bool:
        """Whether these decide, when those are gone for sure. Only who remembers what it said has a voice."""
        return self.is_majority(voices) or all(peer in voices or peer in gone for peer in self.base)

    def is_majority(self, voices: Collection[PeerId]) -> bool:
        """Whether these are more than half, or half with the first."""
        twice = 2 * sum(peer in voices for peer in self.base)
        return twice > len(self.base) or (twice == len(self.base) and self.first in voices)

    def missing(self, voices: Collection[PeerId], gone: Collection[PeerId]) -> tuple[PeerId, ...]:
        """Of whom nothing is known: they may go on without these."""
        return tuple(peer for peer in self.base if peer not in voices and peer not in gone)
