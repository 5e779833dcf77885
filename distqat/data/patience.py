"""Samples that cannot be read are tried again: what is away for a while comes back, and a bad sample stays bad."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from distqat.aio import Backoff
from distqat.data.sources.splits import Arrays
from distqat.errors import DataError

MOST_EQUAL = 4
"""Failures of the same samples for the same reason until they are given up."""

MOST = 10
"""For whatever reasons: several bad samples of one batch are told of in any order."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0
"""Seconds. They grow from one try to the next until something is read again: when nothing can be, it is not the
samples, and there is time to mend it before they are given up."""


class Patience:
    """Of one who reads one range of samples after the other."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` is told why a read waits."""
        self.failed = 0  # Ranges that were given up since the last that was read.
        self._tell = tell
        self._pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE)

    def __repr__(self) -> str:
        return f"<Patience, {self.failed} given up in a row>"

    async def read(self, read: Callable[[int, int], Awaitable[Arrays]], begin: int, end: int) -> Arrays:
        """Samples [begin, end). Raises DataError when they failed so often that they are given up."""
        times: Counter[str] = Counter()
        while True:
            try:
                arrays = await read(begin, end)
            except DataError as error:
                times[error.reason] += 1
                if times[error.reason] >= MOST_EQUAL or times.total() >= MOST:
                    self.failed += 1
                    raise
                self._tell(f"waiting: samples {begin} to {end} cannot be read: {error.reason}")
                await asyncio.sleep(self._pauses.next())
            else:
                self.failed = 0
                self._pauses.reset()
                return arrays
