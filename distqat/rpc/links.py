"""This host's links, as its one transport uses them: looks at its connections while bulk moves, and paces what leaves.

Nothing is looked at while nothing moves, and what stays on this host neither waits nor counts.
"""

from __future__ import annotations

import asyncio

from distqat.rpc.pacing import Gauge, Pace, Pacer
from distqat.rpc.sockets import Sockets
from distqat.rpc.traffic import Meter
from distqat.rpc.transport import Lane

LOOK_SECONDS = 0.25
"""Between two looks."""

REST_SECONDS = 2.0
"""Without a message of bulk, after which nobody looks any more."""

RECENT_SECONDS = 10.0
"""For which a host counts to which bulk goes: it may wait for its turn so long."""


class Links:
    """Of one transport. `watch` must run meanwhile."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.gauge = Gauge()
        self._sockets = Sockets()
        self._pacer = Pacer()
        self._pace = Pace()
        self._moving = asyncio.Event()  # Set by bulk and hops; cleared when they rest.
        self._moved = 0.0  # When the last message of them left or came.
        self._came = 0.0  # When the last message of bulk came.
        self._receivers: dict[str, float] = {}  # When bulk was last given to each host.

    def __repr__(self) -> str:
        pace = f", bulk paced to {self._pacer.rate / 1e6:.1f} MB/s" if self._pacer.rate else ""
        return f"<Links {self.gauge}{pace}>"

    async def leave(self, host: str, lane: Lane, size: int) -> None:
        """Wait until a message to another host may go."""
        if lane is Lane.CONTROL:
            return
        now = self._move()
        if lane is Lane.HOP:
            self._pacer.passed(size, now)
            return
        self._receivers[host] = now
        seconds = self._pacer.take(size, now)
        if seconds:
            await asyncio.sleep(seconds)

    def came(self, lane: Lane) -> None:
        """A message from another host is here."""
        if lane is not Lane.CONTROL:
            now = self._move()
            if lane is Lane.BULK:
                self._came = now

    async def watch(self) -> None:
        """Look while anything moves, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._moving.wait()
            last = loop.time()
            self._look(last)
            while loop.time() - self._moved < REST_SECONDS or self.gauge.is_filled:
                await asyncio.sleep(LOOK_SECONDS)
                now = loop.time()
                self._look(now)
                has_waiting = self._pacer.has_waiting(now)
                self._pacer.rate = self._pace.rate(self.gauge.uplink, self.gauge.is_filled, has_waiting, now - last)
                last = now
            self._moving.clear()

    def _look(self, now: float) -> None:
        self._receivers = {host: at for host, at in self._receivers.items() if now - at < RECENT_SECONDS}
        is_receiving = now - self._came < REST_SECONDS
        self.gauge.look(self._sockets.look(), now, len(self._receivers), is_receiving)

    def _move(self) -> float:
        self._moved = asyncio.get_running_loop().time()
        self._moving.set()
        return self._moved
