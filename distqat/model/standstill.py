"""For how long the process as a whole stood still: SIGSTOP, a frozen container, a debugger. Pure; times are handed in.

Somebody looks again and again. A gap between two looks in which the process used no processor is time that nobody had:
what was under way took less long by that. A gap that it computed through, with the interpreter held, is none.
"""

from __future__ import annotations

BEAT = 0.25
"""Seconds from one look to the next, at most."""

LEAST = 1.0
"""Seconds of a gap from which on it counts: a busy machine also keeps a process from looking for a moment."""


class Standstill:
    """Adds up the gaps. Seconds are of a clock that no stop holds up, and of the processor time of the process."""

    def __init__(self, now: float, processor: float) -> None:
        self.seconds = 0.0
        """For which it stood still so far."""
        self._seen = now
        self._processor = processor

    def __repr__(self) -> str:
        return f"<Standstill {self.seconds:.1f} s>"

    def look(self, now: float, processor: float) -> None:
        """The process runs."""
        gap = now - self._seen - BEAT - (processor - self._processor)
        if gap >= LEAST:
            self.seconds += gap
        self._seen, self._processor = now, processor
