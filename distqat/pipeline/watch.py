"""Notices a neighbour that owes an answer and stays silent, as a stopped process does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watch:
    """Counts what is owed from below, and the seconds since the last sign of life.

    `touched` tells when a part of a long message came last: on a slow link that is long before it is whole.
    """

    def __init__(self, seconds: float, touched: Callable[[], float] = lambda: 0.0) -> None:
        self.seconds = seconds
        self._touched = touched
        self._owed = 0
        self._since = 0.0  # When the last sign came, or the first debt was made; meaningless while nothing is owed.
        self._owing = asyncio.Event()  # Set while anything is owed.

    def __repr__(self) -> str:
        return f"<Watch {self._owed} owed, patience {self.seconds:.1f} s>"

    def owe(self) -> None:
        """Something was sent that will be answered."""
        if not self._owed:
            self.heard()
        self._owed += 1
        self._owing.set()

    def paid(self) -> None:
        """It was answered."""
        self._owed -= 1
        if not self._owed:
            self._owing.clear()

    def heard(self) -> None:
        """There was a sign of life."""
        self._since = asyncio.get_running_loop().time()

    async def wait_silent(self) -> None:
        """Until an answer is owed and nothing at all has come for the whole time."""
        loop = asyncio.get_running_loop()
        while True:
            await self._owing.wait()
            end = max(self._since, self._touched()) + self.seconds
            if loop.time() >= end:
                return
            await asyncio.sleep(end - loop.time())
            if loop.time() > end + self.seconds / 2:
                # This process itself was asleep: what has come meanwhile is not read yet.
                self.heard()
