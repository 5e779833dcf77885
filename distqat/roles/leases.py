"""Who is alive and working: what the last answers of the peers say, judged by the lease. Pure; `now` is handed in."""

from __future__ import annotations

from dataclasses import dataclass, field

from distqat.errors import DistqatError, UnreachableError
from distqat.ids import PeerId
from distqat.roles.status import Loss, PeerStatus


@dataclass
class Leases:
    """The leases of the peers that a client watches. A lease is renewed by an answer that shows progress."""

    seconds: float
    statuses: dict[PeerId, PeerStatus] = field(default_factory=dict)  # Last status of each live peer.
    lost: dict[PeerId, Loss] = field(default_factory=dict)  # Peers lost and not seen since.
    history: list[Loss] = field(default_factory=list)  # Every loss, newest last.
    _renewed: dict[PeerId, float] = field(default_factory=dict)  # When a peer last showed progress.

    def answered(self, peer: PeerId, status: PeerStatus, now: float) -> Loss | None:
        """A peer said what it does; a loss if it answers but has not worked for a whole lease."""
        if status.idle_seconds > self.seconds:
            reason = f"answers, but has made no progress for {status.idle_seconds:.1f} s (lease {self.seconds:.1f} s)"
            return self._lose(peer, "DeadlineError", reason)
        self.lost.pop(peer, None)
        self.statuses[peer] = status
        self._renewed[peer] = now
        return None

    def failed(self, peer: PeerId, error: DistqatError, now: float) -> Loss | None:
        """A peer did not answer; a loss at once if nobody listens there, else when its lease is over."""
        silent = now - self._renewed.setdefault(peer, now)
        if isinstance(error, UnreachableError) or silent > self.seconds:
            return self._lose(peer, type(error).__name__, f"{error.reason} (silent for {silent:.1f} s)")
        return None

    def forget(self, known: set[PeerId]) -> None:
        """Only these peers are still of interest; the others have left in good order."""
        for table in (self.statuses, self._renewed, self.lost):
            for peer in set(table) - known:
                del table[peer]

    def _lose(self, peer: PeerId, kind: str, reason: str) -> Loss | None:
        self.statuses.pop(peer, None)
        if peer in self.lost:
            return None
        loss = Loss(peer, kind, reason)
        self.lost[peer] = loss
        self.history.append(loss)
        del self.history[:-64]
        return loss
