"""Batches a second from the data server to one trainer, beside torch's DataLoader with as many workers.

workers > ring > Feed

The pictures are the same, in the same order, and are decoded when they are made. `wait` is what a trainer that computes
for twice as long as the workers need for a batch waits for one; like a pipeline it asks for the next one while it
computes.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.case import Case, Goal, Line, interleave
from bench.jpegs import PICTURES
from distqat.config import RunConfig, load
from distqat.data.server.blocks import FOLDER
from distqat.data.server.feed import Feed
from distqat.data.server.keeper import Keeper, Launch, open_keeper
from distqat.data.sources.splits import Arrays
from distqat.ids import Endpoint
from distqat.rpc.grpc import GrpcTransport, open_transport

BATCH = 32
WORKERS = 2
RING_MIB = 64
EPOCHS = 4096
MAPPED = f"{BATCH} pictures a batch, {WORKERS} workers, same host"


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Three ways to the same batches take turns."""
    runs, batches = (3, 100) if quick else (7, 200)
    overrides = [f"data.batch={BATCH}", f"data.workers={WORKERS}", f"data.ring_mib={RING_MIB}"]
    config = load(None, ["data.server=on", f"train.epochs={EPOCHS}", *overrides]).run_config()
    launch = Launch(config, Endpoint("127.0.0.1", 0), "127.0.0.1", module="bench.jpegs")
    with tempfile.TemporaryDirectory() as elsewhere:
        async with (
            open_keeper(launch) as keeper,
            open_transport() as transport,
            _feed(keeper, transport, config, FOLDER) as mapped,
            _feed(keeper, transport, config, Path(elsewhere)) as sent,
        ):
            assert (mapped.link, sent.link) == ("mapped", "sent")
            # Nothing is made ahead for the next turn: each begins where nobody has been.
            places = _places(batches)
            here, there, peers = await interleave(
                runs,
                lambda: _take(mapped, next(places), batches),
                lambda: _take(sent, next(places), batches),
                partial(_load, batches),
            )
            peer = f"torch DataLoader, {WORKERS} workers"
            yield Case("data", MAPPED, "batches/s", "higher", peer, Goal("ratio", 0.95)).line(here, peers)
            yield Case("data", "the same over gRPC", "batches/s", "higher", peer).line(there, peers)
            seconds = 2 / (sum(here) / len(here))
            waits = [await _wait(mapped, next(places), batches, seconds) for _ in range(runs)]
            case = "p99 wait of a trainer half as fast"
            yield Case("data", case, "ms", "lower", goal=Goal("value", 1.0)).line([wait * 1e3 for wait in waits])


def _places(batches: int) -> Iterator[int]:
    """First batches of turns that have nothing to do with each other."""
    return iter(range(0, PICTURES * EPOCHS // BATCH - batches, 2 * batches))


@asynccontextmanager
async def _feed(keeper: Keeper, transport: GrpcTransport, config: RunConfig, folder: Path) -> AsyncIterator[Feed]:
    """A trainer that looks for shared memory in that folder."""

    async def locate() -> Endpoint:
        await keeper.wait_samples()
        return keeper.where()

    feed = Feed(transport, locate, config.id, folder)
    async with asyncio.TaskGroup() as group:
        working = group.create_task(feed.work())
        await feed.wait_ready()
        yield feed
        working.cancel()


async def _take(feed: Feed, first: int, batches: int) -> float:
    """Batches a second, from the first one on."""
    began = 0.0
    async with asyncio.TaskGroup() as group:
        coming = group.create_task(_batch(feed, first))
        for number in range(first + 1, first + batches + 2):
            batch = await coming
            began = began or time.perf_counter()
            coming = group.create_task(_batch(feed, number))
            _look(batch)
        await coming
    return batches / (time.perf_counter() - began)


async def _wait(feed: Feed, first: int, batches: int, seconds: float) -> float:
    """Seconds that a trainer waits for a batch at most, but for one in a hundred."""
    waits = []
    async with asyncio.TaskGroup() as group:
        coming = group.create_task(_batch(feed, first))
        await coming
        for number in range(first + 1, first + batches + 1):
            asked = time.perf_counter()
            _look(await coming)
            waits.append(time.perf_counter() - asked)
            coming = group.create_task(_batch(feed, number))
            await asyncio.sleep(seconds)
        await coming
    return float(np.quantile(waits, 0.99))


async def _batch(feed: Feed, number: int) -> Arrays:
    return await feed.train(number * BATCH, number * BATCH + BATCH)


def _look(batch: Arrays) -> None:
    """As a trainer takes it."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    assert len(tensors["inputs"]) == len(tensors["labels"]) == BATCH


async def _load(batches: int) -> float:
    """Batches a second of the peer, from the first one on."""
    order = [sys.executable, "-m", "bench.loader", str(BATCH), str(WORKERS), str(batches)]
    process = await asyncio.create_subprocess_exec(*order, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    return float(told)
