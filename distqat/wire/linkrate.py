"""How fast a link is, as a receiver sees it: bytes over the seconds in which it brought them without a pause. Pure.

Each message says when it was sent, by its sender's clock. The least difference to when it came is the **lag**: that of
the two clocks, and what a small message takes on an idle link. A message that was sent before the one in front of it
had come was queued, and all that are queued one behind the other are a **rush**: it began one lag after its first
message was sent, and lasts until its last one has come. So what disappears into the sender's buffers counts as well.

A busy processor at either end makes messages late, and so a link look slow, but never fast. Therefore the fastest of
the last few rushes counts.
"""

from __future__ import annotations

import math
from collections import deque

KEPT_RUSHES = 8
"""The fastest of them counts."""

NEEDED_RUSHES = 3
"""Before anything is said."""

RUSH_BYTES = 64 << 10
"""In a rush, before it counts: less fits into what a token bucket lets through at once."""

RUSH_SECONDS = 0.5
"""After which the rest of a rush counts as another one, so that a link that changes is noticed."""

DRIFT = 1e-4
"""By which two clocks may run apart, and the lag may grow unnoticed."""

FAST = 100e6
"""Bytes per second from which on a link is as good as any, and nothing is said: processors limit there as well."""


class LinkRate:
    """Of what comes in one direction of one stream, in order; times are seconds of any steady clocks."""

    def __init__(self) -> None:
        self._lag: float | None = None  # None before the first message.
        self._came = -math.inf  # When the last message had come.
        self._begin = 0.0  # Of the present rush, by the receiver's clock.
        self._bytes = 0  # Of the present rush.
        self._rates: deque[float] = deque(maxlen=KEPT_RUSHES)  # Of the rushes before it.

    def __repr__(self) -> str:
        return f"<LinkRate {self.value / 1e6:.1f} MB/s>" if self.value else "<LinkRate unknown>"

    @property
    def value(self) -> float:
        """Bytes per second; 0 while it is not known, or `FAST` or more."""
        rates = [*self._rates, self._rate] if self._bytes >= RUSH_BYTES else self._rates
        best = max(rates) if len(rates) >= NEEDED_RUSHES else math.inf
        return best if best < FAST else 0.0

    def came(self, size: int, sent: float, now: float) -> None:
        """A message of that many bytes, sent at `sent`, is whole now."""
        if self._lag is None:
            self._lag = now - sent
            self._came = now
            return  # Nothing is known yet to tell its own bytes from the lag.
        self._lag = min(self._lag + DRIFT * (now - self._came), now - sent)
        earliest = sent + self._lag
        if earliest > self._came:
            self._next_rush(earliest)
        elif self._came - self._begin > RUSH_SECONDS:
            self._next_rush(self._came)
        self._bytes += size
        self._came = now

    @property
    def _rate(self) -> float:
        seconds = self._came - self._begin
        return self._bytes / seconds if seconds > 0 else math.inf

    def _next_rush(self, begin: float) -> None:
        if self._bytes >= RUSH_BYTES:
            self._rates.append(self._rate)
        self._begin, self._bytes = begin, 0
