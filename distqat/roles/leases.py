"""Who is alive and working: what the last answers of the peers say, judged by the lease. Pure; `now` is handed in."""

from __future__ import annotations

from dataclasses import dataclass, field

from distqat.errors import DistqatError, UnreachableError
from distqat.ids import PeerId
from distqat.roles.status import Lease, Loss, PeerStatus

KEPT_LOSSES = 64

WORK_FACTOR = 4.0
"""A lease lasts so many times the longest unit of work that the peer has reported, if that is more than the least."""

CLOSE = 0.01
"""Seconds by which a deadline may be early."""

BROKEN, SILENT, STUCK = "broken connection", "silence", "stuck"
"""How a peer may be lost."""


@dataclass
class Leases:
    """The leases of the peers that a client watches. A lease is renewed by an answer that shows progress.

    `seconds` is the shortest: that of a peer that has reported no longer work.
    """

    seconds: float
    statuses: dict[PeerId, PeerStatus] = field(default_factory=dict)  # Last status of each live peer.
    lost: dict[PeerId, Loss] = field(default_factory=dict)  # Peers lost and not seen since.
    history: list[Loss] = field(default_factory=list)  # Every loss, newest last.
    _gone: dict[PeerId, None] = field(default_factory=dict)  # Lost, and not back yet; oldest first.
    _renewed: dict[PeerId, float] = field(default_factory=dict)  # When a peer last showed progress.

    def answered(self, peer: PeerId, status: PeerStatus, now: float) -> Loss | None:
        """A peer said what it does; a loss if it answers but has not worked for a whole lease."""
        length = self._length(status)
        if status.idle_seconds > length:
            reason = f"answers, but has made no progress for {status.idle_seconds:.1f} s (lease {length:.1f} s)"
            return self._lose(peer, "DeadlineError", reason, STUCK)
        self.lost.pop(peer, None)
        self.statuses[peer] = status
        self._renewed[peer] = now
        return None

    def failed(self, peer: PeerId, error: DistqatError, now: float) -> Loss | None:
        """A peer did not answer; a loss at once if nobody listens there, else when its lease is over."""
        silent = now - self._renewed.setdefault(peer, now)
        if isinstance(error, UnreachableError) or silent >= self.length(peer) - CLOSE:
            how = BROKEN if isinstance(error, UnreachableError) else SILENT
            return self._lose(peer, type(error).__name__, f"{error.reason} (silent for {silent:.1f} s)", how)
        return None

    def length(self, peer: PeerId) -> float:
        """Seconds that the peer's lease lasts, from its last answer on."""
        return self._length(self.statuses.get(peer, PeerStatus()))

    def left(self, peer: PeerId, now: float) -> float:
        """Seconds for which an answer of the peer may be waited for: what is left of its lease, or a short while."""
        return max(self._renewed.get(peer, now) + self.length(peer) - now, self.seconds / 6)

    def _length(self, status: PeerStatus) -> float:
        return max(self.seconds, WORK_FACTOR * status.work_seconds)

    def ages(self, now: float) -> tuple[Lease, ...]:
        """How long ago the lease of each live peer was renewed."""
        renewed = {peer: self._renewed.get(peer, now) for peer in sorted(self.statuses)}
        return tuple(Lease(peer, now - since, self.length(peer)) for peer, since in renewed.items())

    def is_back(self, peer: PeerId) -> bool:
        """Whether the peer lives and was lost before; true once for each return."""
        is_back = peer in self.statuses and peer in self._gone
        if is_back:
            del self._gone[peer]
        return is_back

    def forget(self, known: set[PeerId]) -> None:
        """Only these peers are still of interest; the others have left in good order."""
        for table in (self.statuses, self._renewed, self.lost):
            for peer in set(table) - known:
                del table[peer]

    def _lose(self, peer: PeerId, kind: str, reason: str, how: str) -> Loss | None:
        self.statuses.pop(peer, None)
        if peer in self.lost:
            return None
        loss = Loss(peer, kind, reason, how)
        self._gone.pop(peer, None)
        self._gone = dict.fromkeys([*self._gone, peer][-KEPT_LOSSES:])
        self.lost[peer] = loss
        self.history.append(loss)
        del self.history[:-KEPT_LOSSES]
        return loss
