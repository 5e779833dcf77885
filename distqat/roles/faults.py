"""When an expert whose device fails gives its seat back, and for how long it then takes none. Pure."""

from __future__ import annotations

from collections import deque

FAULTS = 3
"""Faults within `WINDOW` seconds that are too many."""

WINDOW = 60.0

FIRST_REST = 10.0
"""Seconds for which it takes no seat after the first time; twice as many after each further one."""

LONGEST_REST = 600.0


class Faults:
    """What an expert remembers of its own faults."""

    def __init__(self) -> None:
        self.reason = ""  # Of the last one.
        self._times: deque[float] = deque(maxlen=FAULTS)
        self._rests = 0  # How often it had too many.
        self._until = 0.0  # When the last rest is over.

    def __repr__(self) -> str:
        return f"<Faults {len(self._times)} lately, {self._rests} rests: {self.reason or 'none'}>"

    def add(self, reason: str, now: float) -> bool:
        """There was one; whether these are too many."""
        self.reason = reason
        self._times.append(now)
        return len(self._times) == FAULTS and now - self._times[0] <= WINDOW

    def rest(self, now: float) -> float:
        """Take no seat from now on; for how many seconds."""
        seconds = min(LONGEST_REST, FIRST_REST * 2.0**self._rests)
        self._rests += 1
        self._times.clear()
        self._until = now + seconds
        return seconds

    def left(self, now: float) -> float:
        """Seconds until a seat may be taken again."""
        return max(0.0, self._until - now)
