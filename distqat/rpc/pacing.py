"""What a host's links carry, and when bulk may leave so that it fills none. Pure: looks and times come from outside.

The kernel says of each connection what it has got through and what still waits in it (`sockets.py`). While something
waits, the link (or the far end of it) is what limits, and all connections together show its rate. Bulk is paced to a
little under that by one token bucket for all streams, so that the queues on the way stay short and what somebody
waits for passes. A link that nothing has filled has no known rate, and nothing waits for it.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

SPAN_SECONDS = 0.5
"""Shortest time over which a rate is believed."""

LONG_SPAN = 2.0
"""After which a new measurement begins, so that a link that changes is noticed."""

KEPT_SPANS = 5
"""The median of them counts."""

RECENT = 30.0
"""Seconds for which a link is taken to carry what it has carried,"""

FAR_MORE = 1.5
"""if that is so much more than what it carried when it seemed to be full."""

STARVED = 0.5
"""Share of the time in which a connection waited for a receiver that does not read: then that is what limits it."""

MAJORITY = 0.5
"""Share of the bytes that must have waited: what passes without waiting shows that a far end limits, not the link."""

SHARE = 0.9
"""Of the uplink that bulk may take."""

HOP_SHARE = 0.8
"""Of a hop's bytes that bulk stands back for: so it always gets something, or no round would ever end."""

BURST = 0.05
"""Seconds of the rate that may leave at once after a pause."""

FAST = 25e6
"""Bytes per second from which on nothing is paced: what fills such a link delays others by milliseconds."""

PROBE_AFTER = 3.0
"""Seconds in which bulk had to wait though the link was not full: it may have become faster."""

PROBE_AGAIN = 1.0
"""The same, once a faster pace has filled nothing."""

PROBE_GAIN = 1.25
MOST_GAIN = 2.0


@dataclass(frozen=True)
class Flow:
    """One connection to another host, since it was made."""

    acked: int
    """Bytes that the other end has."""
    received: int
    unsent: int
    """Bytes that wait for the link now."""
    starved: float
    """Seconds in which it waited for the receiver to read."""


class Spans:
    """Rates of the last few spans of time in which a link was busy without a pause.

    What passed before the first look of a span does not count: a shaper lets the first bytes through at once.
    """

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=KEPT_SPANS)
        self._bytes = 0  # Of the present span.
        self._seconds = 0.0  # Of the present span; 0 between spans.
        self._is_busy = False  # It was, when last looked at.

    @property
    def typical(self) -> float:
        """Bytes per second; 0 while no span was long enough."""
        rates = self._known
        return statistics.median_low(rates) if rates else 0.0

    @property
    def best(self) -> float:
        """Bytes per second of the fastest; 0 while none was long enough."""
        return max(self._known, default=0.0)

    def add(self, size: int, seconds: float) -> None:
        """So much passed in that time; nothing ends the span."""
        if not size or self._seconds >= LONG_SPAN:
            if self._seconds >= SPAN_SECONDS:
                self._rates.append(self._rate)
            self._bytes, self._seconds = 0, 0.0
        if size and self._is_busy:
            self._bytes += size
            self._seconds += seconds
        self._is_busy = size > 0

    @property
    def _known(self) -> list[float]:
        return [*self._rates, self._rate] if self._seconds >= SPAN_SECONDS else list(self._rates)

    @property
    def _rate(self) -> float:
        return self._bytes / self._seconds


class Gauge:
    """What the links of this host carry, from looks at its connections; call `look` a few times a second."""

    def __init__(self) -> None:
        self.is_filled = False  # The uplink was full all the time between the last two looks.
        self._flows: Mapping[int, Flow] = {}  # As they were at the last look.
        self._at = 0.0  # The last look.
        self._full = Spans()  # Of the uplink while it was full,
        self._out = Spans()  # and at all times.
        self._in = Spans()
        self._carried = 0.0  # The most that it has carried recently, in bytes per second,
        self._carried_at = 0.0  # and when.

    def __repr__(self) -> str:
        return f"<Gauge up {self.uplink / 1e6:.1f}, down {self.downlink / 1e6:.1f} MB/s>"

    @property
    def uplink(self) -> float:
        """Bytes per second; 0 while it is not known."""
        full = self._full.typical
        return self._carried if full and self._carried > FAR_MORE * full else full

    @property
    def downlink(self) -> float:
        """Bytes per second, at least: those who send may have been slower. No link is taken to be slower than its
        uplink. 0 while it is not known."""
        return max(self._in.best, self.uplink)

    def look(self, flows: Mapping[int, Flow], now: float, receivers: int, is_receiving: bool) -> None:
        """Learn from what has changed since the last look.

        `receivers` are the hosts to which bulk goes; if there are several and it waits for one of them only, then that
        one is slow. `is_receiving`: bulk was coming in all that time.
        """
        seconds, before = now - self._at, self._flows
        both = [(before[key], flow) for key, flow in flows.items() if key in before]
        self._flows, self._at = flows, now
        sent, received = (
            sum(new.acked - old.acked for old, new in both),
            sum(new.received - old.received for old, new in both),
        )
        waiting = [
            new.acked - old.acked
            for old, new in both
            if old.unsent and new.unsent and new.starved - old.starved < STARVED * seconds
        ]
        self.is_filled = len(waiting) >= max(1, min(2, receivers)) and sum(waiting) > MAJORITY * sent
        self._full.add(sent if self.is_filled else 0, seconds)
        self._in.add(received if is_receiving else 0, seconds)
        self._out.add(sent, seconds)
        if self._out.best >= self._carried or now - self._carried_at > RECENT:
            self._carried, self._carried_at = self._out.best, now


class Pacer:
    """When bulk may leave. Who comes first goes first."""

    def __init__(self) -> None:
        self.rate = 0.0  # Bytes per second; 0: unlimited.
        self._free = 0.0  # When all that was taken so far has left.

    def take(self, size: int, now: float) -> float:
        """Seconds to wait before so many bytes may leave."""
        if not self.rate:
            return 0.0
        begin = max(self._free, now - BURST)
        self._free = begin + size / self.rate
        return max(0.0, begin - now)

    def has_waiting(self, now: float) -> bool:
        """Whether somebody who comes now must wait."""
        return self.rate > 0 and self._free > now

    def passed(self, size: int, now: float) -> None:
        """Bytes have left that need not wait; bulk waits the longer."""
        if self.rate:
            self._free = max(self._free, now - BURST) + HOP_SHARE * size / self.rate


class Pace:
    """How fast bulk may leave: a little under what the link is known to carry, and now and then a little more, to see
    whether it carries that."""

    def __init__(self) -> None:
        self._gain = 1.0  # By which the pace is faster than what is known.
        self._clean = 0.0  # Seconds in which bulk waited for its turn and nothing for the link.

    def rate(self, uplink: float, is_filled: bool, has_waiting: bool, seconds: float) -> float:
        """Bytes per second for the time that comes, after so many seconds in which things were so; 0: no limit."""
        if is_filled:
            self._gain, self._clean = 1.0, 0.0
        elif has_waiting:
            self._clean += seconds
            if self._clean >= (PROBE_AFTER if self._gain == 1.0 else PROBE_AGAIN):
                self._gain, self._clean = self._gain * min(MOST_GAIN, PROBE_GAIN * self._gain), 0.0
        pace = SHARE * self._gain * uplink
        return pace if pace < SHARE * FAST else 0.0
