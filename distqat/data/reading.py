"""How a trainer gets at samples by their position: it reads the data set itself, or a data server does."""

from __future__ import annotations

import asyncio
from typing import Protocol

import numpy as np

from distqat.config import RunConfig
from distqat.data.sampler import Sampler
from distqat.data.sources import open_source
from distqat.data.sources.splits import Arrays, Source, training_batch

INLINE_BYTES = 1 << 18
"""A larger batch is cut out of an embedded source on a thread, so that the event loop goes on. Every batch of another
source is: how long it takes to decode does not show in its size."""

EMBEDDED = frozenset({"digits", "pydocs"})
"""Sources that come with the machine and are small: with `data.server: auto` every trainer reads them itself."""


class Reading(Protocol):
    """The samples of a run. The same position gives the same bytes, whoever reads."""

    @property
    def num_samples(self) -> int:
        """To train on, in each epoch."""
        ...

    @property
    def num_held_out(self) -> int:
        """For evaluations."""
        ...

    @property
    def waiting(self) -> str:
        """Why a call waits, in one sentence; empty while none does."""
        ...

    async def train(self, begin: int, end: int) -> Arrays:
        """Samples at positions [begin, end) of the run's order. Raises DataError."""
        ...

    async def held_out(self, begin: int, end: int) -> Arrays:
        """Held-out samples [begin, end), by index. Raises DataError."""
        ...


class OwnReading:
    """The data set is open in this process; `is_embedded` if it is small and wholly in memory."""

    waiting = ""

    def __init__(self, source: Source, sampler: Sampler, is_embedded: bool = False) -> None:
        self._source = source
        self._sampler = sampler
        self._is_embedded = is_embedded
        self._sample_bytes = INLINE_BYTES  # Of one sample, as it was in the last batch; before the first: large.

    def __repr__(self) -> str:
        return f"<OwnReading of {self._source.name}>"

    @classmethod
    async def open(cls, config: RunConfig) -> OwnReading:
        """Open the run's data set. Raises DataError."""
        source = await asyncio.to_thread(open_source, config)
        return cls(source, Sampler(len(source.train), config.run.seed), config.data.source in EMBEDDED)

    @property
    def num_samples(self) -> int:
        return self._sampler.num_samples

    @property
    def num_held_out(self) -> int:
        return len(self._source.held_out)

    async def train(self, begin: int, end: int) -> Arrays:
        if self._is_embedded and (end - begin) * self._sample_bytes <= INLINE_BYTES:
            return self._read(begin, end)
        arrays = await asyncio.to_thread(self._read, begin, end)
        self._sample_bytes = sum(array.nbytes for array in arrays.values()) // (end - begin)
        return arrays

    async def held_out(self, begin: int, end: int) -> Arrays:
        return await asyncio.to_thread(self._source.held_out.batch, np.arange(begin, end, dtype=np.int64))

    def _read(self, begin: int, end: int) -> Arrays:
        return training_batch(self._source.train, self._sampler.indices(begin, end), begin)


def is_served(config: RunConfig) -> bool:
    """Whether a data server reads the samples of the run, and no trainer does."""
    choice = config.data.server
    return choice == "on" or (choice == "auto" and config.data.source not in EMBEDDED)
