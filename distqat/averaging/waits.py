"""How long each part of a round may take. People set one thing, `sync.max_wait`; the rest follows from it. Pure."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from distqat.sections import SyncSection

LEAST_RATE = 1e6
"""Bytes per second below which a link cannot take part in rounds."""

LEAST_PATIENCE = 1.0
"""Seconds for which a leader waits at least: a sibling that is left out loses its progress and costs a snapshot."""

LEAST_QUIET = 0.3
"""Seconds for which a leader waits at least for siblings of which none answers: it rings them meanwhile."""

FRUITLESS = 4
"""Rounds in a row without siblings that did not answer, after which they are waited for twice as long."""

MOST_DOUBLINGS = 16
"""Of that wait: any setting is less by then, and no number too large."""

SPREADS = 8.0
"""Median absolute deviations above the median arrival for which a leader waits."""

REMEMBERED = 32
"""Rounds whose arrivals are remembered."""


@dataclass(frozen=True)
class Waits:
    """Seconds, all derived."""

    form: float
    """Longest wait of a leader for a live sibling."""
    join: float
    """Longest wait of a member for its group; longer than `form`, so the leader decides first."""
    invite: float
    """Answer to an invitation. Who is waited for and answers nothing for so long is taken for silent."""
    progress: float
    """An owner's wait for the next chunk of a member."""
    answer: float
    """A member's wait for the next averaged chunk; longer than `progress`, so the owner finds the culprit first."""
    ballot: float
    """A leader's wait for the votes that are missing after its own."""
    vote: float
    """A member's wait for the verdict; longer than the leader's exchange may hang and its ballot."""
    presumed: float
    """Silence after which a sibling that decides is taken for dead; a cut that lasts longer may part the run."""
    total: float
    """One call of `synchronise`, whatever happens in it."""

    @classmethod
    def of(cls, sync: SyncSection, num_elements: int) -> Waits:
        """The waits of rounds of so many fp32 elements."""
        longest = sync.max_wait
        return cls(
            form=longest,
            join=2 * longest,
            invite=min(0.75, longest / 2),
            progress=longest / 2,
            answer=longest,
            ballot=longest,
            vote=3 * longest,
            presumed=3 * longest,
            total=8 * longest + 8 * num_elements / LEAST_RATE,
        )


class Patience:
    """How long a leader waits for those who have not joined, learned from how far apart they joined before."""

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self._spreads: deque[float] = deque(maxlen=REMEMBERED)  # First to last arrival of past rounds, in seconds.
        self._quiet_rounds = 0  # In a row, taken without siblings that did not answer.

    def note(self, spread: float) -> None:
        """So many seconds lay between the first and the last arrival of a round; `longest` if someone was missed."""
        self._spreads.append(min(spread, self.longest))
        self._quiet_rounds = 0

    def note_quiet(self) -> None:
        """A round was taken without siblings that did not answer; of how long the others take that says nothing."""
        self._quiet_rounds += 1

    def seconds(self) -> float:
        """Seconds to wait from the first arrival on; the longest while nothing is known."""
        return min(self.longest, max(LEAST_PATIENCE, self._learned(self.longest)))

    def quiet_seconds(self) -> float:
        """The same if none of them answers: dead, most likely. One that only is slow is waited for in the end."""
        seconds = max(LEAST_QUIET, self._learned(LEAST_PATIENCE))
        return min(self.longest, seconds * 2.0 ** min(self._quiet_rounds // FRUITLESS, MOST_DOUBLINGS))

    def _learned(self, unknown: float) -> float:
        if not self._spreads:
            return unknown
        median = statistics.median(self._spreads)
        deviation = statistics.median(abs(spread - median) for spread in self._spreads)
        return median + SPREADS * deviation
