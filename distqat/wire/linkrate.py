"""How fast a link is, as a sender sees it: bytes over the seconds in which sending them was held back. Pure.

What disappears into buffers at once says nothing of the link, so the rate of a link that nobody fills is not known.
"""

from __future__ import annotations

HELD = 0.002
"""Seconds that a frame must have waited to count as held back; less is what copying it takes."""

GAP = 0.005
"""Seconds after a frame that was held back in which the next one is still part of the same rush. Buffers take several
frames at once after each wait, and those must count too."""

RUSH_BYTES = 64 << 10
"""Of a rush, before it counts. Less fits into any buffer: what held it back, such as a busy processor, was no link."""

MIN_SECONDS = 0.02
"""Held back before anything is said."""

MIN_BYTES = 256 << 10
"""Sent in that time before anything is said."""

HORIZON_SECONDS = 2.0
"""Held back,"""

LEAST_BYTES = 32 << 20
"""if so much was sent in that time,"""

MOST_BYTES = 256 << 20
"""or so much in less: after that what is older counts half."""

FORGET_BYTES = 64 << 20
"""Sent in a row without being held back, after which the link is not the same any more, or not what limits."""


class LinkRate:
    """The rate of one direction of one stream; times are seconds of any steady clock."""

    def __init__(self) -> None:
        self._bytes = 0.0  # Sent while held back; older ones count less.
        self._seconds = 0.0  # Held back; older ones count less.
        self._rush_end: float | None = None  # When the last frame of a rush was through; None before the first.
        self._rush_bytes = 0  # Of the present rush, not counted yet.
        self._rush_seconds = 0.0
        self._free_bytes = 0  # Sent since something counted.

    def __repr__(self) -> str:
        return f"<LinkRate {self.value / 1e6:.1f} MB/s>" if self.value else "<LinkRate unknown>"

    @property
    def value(self) -> float:
        """Bytes per second; 0 while it is not known."""
        is_known = self._seconds >= MIN_SECONDS and self._bytes >= MIN_BYTES
        return self._bytes / self._seconds if is_known else 0.0

    def sent(self, size: int, began: float, ended: float) -> None:
        """A frame of that many bytes was given to the transport at `began`, which had room for more at `ended`."""
        since = began
        if self._rush_end is not None and began - self._rush_end <= GAP:
            since = self._rush_end
        elif ended - began < HELD:
            self._free(size)
            return
        else:
            self._rush_bytes, self._rush_seconds = 0, 0.0
        self._rush_bytes += size
        self._rush_seconds += ended - since
        self._rush_end = ended
        if self._rush_bytes >= RUSH_BYTES:
            self._count()

    def _count(self) -> None:
        self._bytes += self._rush_bytes
        self._seconds += self._rush_seconds
        self._rush_bytes, self._rush_seconds = 0, 0.0
        self._free_bytes = 0
        if (self._seconds > HORIZON_SECONDS and self._bytes > LEAST_BYTES) or self._bytes > MOST_BYTES:
            self._bytes /= 2
            self._seconds /= 2

    def _free(self, size: int) -> None:
        self._free_bytes += size
        if self._free_bytes > FORGET_BYTES:
            self._bytes = self._seconds = 0.0
