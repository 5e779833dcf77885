"""Which donor gives which chunk next: decided here, without calls and without a clock. Pure.

A donor that is faster asks more often and so gives more. At the end, when every chunk is promised by somebody, a donor
that has nothing to do takes over what a much slower one is unlikely to give soon; whoever is first counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from distqat.averaging.state.snapshot import ChunkRef
from distqat.ids import PeerId

AHEAD = 2
"""Chunks that a donor is asked for at a time, so that it is never without work; only one until it has given one."""

MOST_AHEAD = 8
AHEAD_SECONDS = 0.02
"""A donor that is fast is asked for as many as it gives in this time, so that no side waits for the other's turn at its
processor; `MOST_AHEAD` at most."""

MOST_HOLDERS = 2
"""Donors that may be giving the same chunk at the same time."""

RESCUE = 2.0
"""A chunk is taken over if its donor needs so many times as long as the other one would."""

FIRST_PACE = 0.5
"""Seconds that a chunk may take while no donor has given one."""


@dataclass
class _Giver:
    """One donor."""

    pending: dict[ChunkRef, float] = field(default_factory=dict)
    """What it was asked for and has not given, and since when it works on it; oldest first."""
    given: int = 0
    seconds: float = 0.0
    """That the given chunks took."""

    def pace(self) -> float | None:
        """Seconds for a chunk; None before the first."""
        return self.seconds / self.given if self.given else None

    @property
    def ahead(self) -> int:
        """Chunks that it may be asked for at a time."""
        pace = self.pace()
        if pace is None:
            return 1
        return max(AHEAD, min(MOST_AHEAD, round(AHEAD_SECONDS / pace) if pace > 0 else MOST_AHEAD))

    def expected(self, chunk: ChunkRef, now: float) -> float:
        """Seconds until it will have given the chunk, at the pace so far; 0 while nothing is known of that."""
        place, began = list(self.pending).index(chunk), next(iter(self.pending.values()))
        return max((self.pace() or 0.0) * (place + 1) - (now - began), 0.0)


class Haul:
    """The chunks of one state, and who gives them."""

    def __init__(self, chunks: Iterable[ChunkRef]) -> None:
        self._todo = deque(chunks)  # Asked of nobody.
        self._givers: dict[PeerId, _Giver] = {}  # Those that give now.
        self._left = set(self._todo)  # Not here yet.
        self.given: dict[PeerId, int] = {}  # Chunks by who was first with them.

    def __repr__(self) -> str:
        return f"<Haul {len(self._left)} chunks left, {len(self._todo)} of them asked of nobody>"

    @property
    def is_done(self) -> bool:
        """Whether all chunks are here."""
        return not self._left

    def join(self, donor: PeerId) -> None:
        """The donor is ready to give."""
        self._givers[donor] = _Giver()

    def next(self, donor: PeerId, now: float) -> ChunkRef | None:
        """What to ask the donor for; None if it should wait."""
        giver = self._givers[donor]
        if len(giver.pending) >= giver.ahead:
            return None
        chunk = self._todo.popleft() if self._todo else self._rescue(giver, now)
        if chunk is not None:
            giver.pending[chunk] = now
        return chunk

    def arrived(self, donor: PeerId, chunk: ChunkRef, now: float) -> bool:
        """The donor has given the chunk, and it is right; whether nobody else was faster."""
        giver = self._givers[donor]
        giver.seconds += now - giver.pending.pop(chunk)
        giver.given += 1
        # From now on it works on the next one.
        giver.pending = dict.fromkeys(giver.pending, now) if giver.pending else giver.pending
        if chunk not in self._left:
            return False
        self._left.discard(chunk)
        self.given[donor] = self.given.get(donor, 0) + 1
        return True

    def expects(self, donor: PeerId, chunk: ChunkRef) -> bool:
        """Whether the donor was asked for the chunk and has not given it."""
        return chunk in self._givers[donor].pending

    def is_waiting_for(self, donor: PeerId) -> bool:
        """Whether the donor was asked for anything that it has not given."""
        return bool(self._givers[donor].pending)

    def leave(self, donor: PeerId) -> None:
        """The donor gives no more; what only it was asked for is asked of others first."""
        giver = self._givers.pop(donor)
        orphans = [chunk for chunk in giver.pending if chunk in self._left and not self._holders(chunk)]
        self._todo.extendleft(reversed(orphans))

    def _holders(self, chunk: ChunkRef) -> list[_Giver]:
        return [giver for giver in self._givers.values() if chunk in giver.pending]

    def _pace(self, giver: _Giver) -> float:
        """Its seconds for a chunk; until it has given one, those of all."""
        given = sum(other.given for other in self._givers.values())
        mean = sum(other.seconds for other in self._givers.values()) / given if given else FIRST_PACE
        return giver.pace() or mean

    def _rescue(self, helper: _Giver, now: float) -> ChunkRef | None:
        """The chunk that would come last, if the helper would bring it much sooner."""
        own = self._pace(helper) * (len(helper.pending) + 1)
        worst: tuple[float, ChunkRef] | None = None
        for chunk in sorted(self._left):
            holders = self._holders(chunk)
            if helper in holders or not 0 < len(holders) < MOST_HOLDERS:
                continue
            since = now - holders[0].pending[chunk]
            late = max(since, holders[0].expected(chunk, now))
            if late > RESCUE * own and (worst is None or late > worst[0]):
                worst = (late, chunk)
        return worst[1] if worst is not None else None
