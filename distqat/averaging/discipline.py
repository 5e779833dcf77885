"""Whose contributions are not taken for a while, because the attempts with them keep failing. Pure.

One failure costs a sibling the round. Each further one in a row costs it twice the time of the one before. It is still
a member of the groups, receives and votes, so that it stays abreast, and is forgiven with the first round that its
contribution is in.
"""

from __future__ import annotations

from dataclasses import dataclass

from distqat.ids import PeerId

MOST_DOUBLINGS = 8


@dataclass(frozen=True)
class _Fault:
    count: int
    until: float
    reason: str


class Discipline:
    """What one sibling holds against the others. `first` seconds are the price of the second failure in a row."""

    def __init__(self, first: float) -> None:
        self.first = first
        self._faults: dict[PeerId, _Fault] = {}  # Those who have failed since they last took part.

    def __repr__(self) -> str:
        return f"<Discipline {len(self._faults)} have failed>"

    def blame(self, peer: PeerId, reason: str, now: float) -> None:
        """An attempt failed because of it."""
        before = self._faults.get(peer)
        count = before.count + 1 if before is not None else 1
        seconds = self.first * 2.0 ** min(count - 2, MOST_DOUBLINGS) if count > 1 else 0.0
        self._faults[peer] = _Fault(count, now + seconds, reason)

    def forgive(self, peer: PeerId) -> None:
        """A round with its contribution was committed."""
        self._faults.pop(peer, None)

    def forget(self, known: set[PeerId]) -> None:
        """Only these siblings exist."""
        self._faults = {peer: fault for peer, fault in self._faults.items() if peer in known}

    def objection(self, peer: PeerId, now: float) -> str:
        """Why its contribution is not taken now; empty if it is."""
        fault = self._faults.get(peer)
        if fault is None or now >= fault.until:
            return ""
        return f"held back for {fault.until - now:.1f} s after {fault.count} failures in a row: {fault.reason}"
