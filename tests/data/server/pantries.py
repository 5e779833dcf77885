"""A data server in the event loop of a test: the real ring and memory, and workers as slow as they are told to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distqat.data.reading import OwnReading
from distqat.data.sampler import Sampler
from distqat.data.server.blocks import Blocks, map_for_writing
from distqat.data.server.feed import Feed
from distqat.data.server.layout import Layout, Sizes
from distqat.data.server.ring import Job, Ring
from distqat.data.server.service import Offer, Pantry, Waits, open_pantry
from distqat.data.server.workers import Recipe
from distqat.data.sources import Arrays, ArraySplit, Source
from distqat.errors import DataError
from distqat.ids import Endpoint, RunId
from distqat.model.shapes import DataShape
from distqat.rpc.local import Network
from distqat.rpc.transport import Service, Transport

RUN = RunId("digits", "0123456789abcdef")
AT = Endpoint("client", 4000)
NUM_SAMPLES, NUM_HELD_OUT, BUDGET = 50, 20, 220
SEED = 7
WAITS = Waits(ping=1.0, silence=10.0)


class Moving(ArraySplit):
    """Samples that say at which position they are trained on, as augmented ones do."""

    def batch_at(self, indices: npt.NDArray[np.int64], begin: int) -> Arrays:
        positions = np.arange(begin, begin + len(indices))
        return {**self.batch(indices), "positions": positions}

    def batch(self, indices: npt.NDArray[np.int64]) -> Arrays:
        return {**super().batch(indices), "positions": indices}


def a_source(width: int = 3) -> Source:
    def split(length: int, sign: float) -> Moving:
        inputs = sign * np.arange(length, dtype=np.float32)[:, None] + np.linspace(0, 0.5, width, dtype=np.float32)
        return Moving({"inputs": inputs, "labels": np.arange(length)})

    shape = DataShape("image", (1, 1, width), NUM_SAMPLES)
    return Source("numbers", "cv", shape, split(NUM_SAMPLES, 1.0), split(NUM_HELD_OUT, -1.0))


def own(source: Source | None = None) -> OwnReading:
    return OwnReading(source or a_source(), Sampler(NUM_SAMPLES, SEED))


@dataclass
class FakeWorker:
    """Makes samples after so many seconds."""

    recipe: Recipe
    seconds: float = 0.01
    bad: set[int] = field(default_factory=set)
    """First samples of parts that cannot be made."""
    made: list[Job] = field(default_factory=list)

    async def make(self, job: Job, block: str) -> str:
        await asyncio.sleep(self.seconds)
        self.made.append(job)
        if job.begin in self.bad:
            return f"sample {job.begin} is broken"
        self.recipe.write(job, map_for_writing(block, self.recipe.folder))
        return ""


@dataclass
class Served:
    """A data server."""

    pantry: Pantry
    workers: Sequence[FakeWorker]
    service: Service


@asynccontextmanager
async def serving(
    network: Network, folder: Path, workers: int = 1, sizes: Sizes | None = None, source: Source | None = None
) -> AsyncIterator[Served]:
    """At `AT`, until the end of the block."""
    data = source or a_source()
    sampler = Sampler(len(data.train), SEED)
    layout = Layout.of(data.train.batch(np.arange(1)))
    planned = sizes or Sizes(6, 8, 4)
    blocks = Blocks(folder, RUN.digest)
    try:
        slots = blocks.make_slots(planned.slots, 1, layout.slot_bytes(planned.rows))
        offer = Offer(RUN, layout, blocks.door, blocks.nonce, len(data.train), len(data.held_out))
        pantry = Pantry(offer, Ring(planned, BUDGET, len(data.held_out)), slots, blocks)
        recipe = Recipe(data, sampler, layout, planned.rows, folder)
        makers = [FakeWorker(recipe, 0.01 * (number + 1)) for number in range(workers)]
        async with network.transport(AT.host).serve(AT) as server, open_pantry(pantry, makers):
            service = pantry.service(WAITS)
            server.add(service)
            yield Served(pantry, makers, service)
    finally:
        blocks.close()


@asynccontextmanager
async def feeding(transport: Transport, folder: Path) -> AsyncIterator[Feed]:
    """A trainer whose shared memory lies in that folder."""

    async def locate() -> Endpoint:
        return AT

    feed = Feed(transport, locate, RUN, folder, WAITS)
    async with asyncio.TaskGroup() as group:
        working = group.create_task(feed.work())
        try:
            yield feed
        finally:
            working.cancel()


def differences(got: Arrays, expected: Arrays) -> list[str]:
    """Names of arrays that are not the same to the bit."""
    if got.keys() != expected.keys():
        raise DataError(f"{sorted(got)}, not {sorted(expected)}")
    return [
        name
        for name, array in expected.items()
        if got[name].dtype != array.dtype or not np.array_equal(got[name], array)
    ]
