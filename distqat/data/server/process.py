"""The data server as a process: opens the data set, forks its workers, listens, and ends with its client."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distqat.config import RunConfig
from distqat.data.sampler import Sampler, budget
from distqat.data.server.blocks import Block, Blocks, sweep
from distqat.data.server.layout import LEAST_SLOTS, Layout, Sizes, sizes
from distqat.data.server.lifeline import BEAT_SECONDS, Lifeline, on_parents_death
from distqat.data.server.ring import Ring
from distqat.data.server.service import Offer, Pantry, open_pantry
from distqat.data.server.workers import Pace, Recipe, Worker, fork_workers, read
from distqat.data.sources import open_source
from distqat.data.sources.splits import Source
from distqat.errors import CannotListenError, ConfigError, DataError, DistqatError
from distqat.ids import Endpoint
from distqat.rpc.grpc import open_transport
from distqat.rpc.loop import run
from distqat.telemetry import set_up_logging

log = logging.getLogger(__name__)

MOST_UNREADABLE = 16
"""Samples at the beginning of the run's order that may be unreadable: of the next one it is known how samples lie."""


def main(control: socket.socket, opens: Callable[[RunConfig], Source] = open_source) -> int:
    """Serve until the other end of the socket closes; the exit code."""
    # Its client may be asked to leave, and needs it until it has: whoever started it ends it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # A stopped process would not see that its client is gone.
    on_parents_death(signal.SIGCONT)
    lifeline = Lifeline(control)
    try:
        order = lifeline.read_order()
        set_up_logging(order["log_level"], "json" if order["log_format"] == "json" else "rich")
        config, listen = RunConfig.from_canonical(order["config"]), Endpoint.parse(order["listen"])
        with lifeline.saying({"phase": "opening", "text": f"opening data source {config.data.source}"}):
            source = opens(config)
            kitchen = Kitchen(config, source, Path(order["folder"]))
            pace = Pace(float(order["making"]), kitchen.seconds)
        try:
            workers = fork_workers(kitchen.recipe, kitchen.blocks, config.data.workers, pace, [control])
            lifeline.end_with(kitchen.blocks.close)
            run(_serve(kitchen, workers, listen, lifeline))
        finally:
            kitchen.blocks.close()
    except (DistqatError, OSError, MemoryError) as error:
        reason = error.reason if isinstance(error, DistqatError) else f"{type(error).__name__}: {error}"
        lifeline.say({"phase": "failed", "text": reason})
        return 1
    return 0


class Kitchen:
    """The data set, and memory for its samples. Raises DataError."""

    def __init__(self, config: RunConfig, source: Source, folder: Path) -> None:
        sweep(folder)
        sampler = Sampler(len(source.train), config.run.seed)
        began = time.monotonic()
        layout = _first_layout(source, sampler)
        self.seconds = time.monotonic() - began  # That the first sample took.
        planned = sizes(layout, config.data.batch, config.data.ring_mib << 20)
        self.config = config
        self.source = source
        self.blocks = Blocks(folder, config.id.digest)
        try:
            self.slots: list[Block] = self.blocks.make_slots(
                planned.slots, LEAST_SLOTS, layout.slot_bytes(planned.rows)
            )
        except (DataError, OSError):
            self.blocks.close()
            raise
        self.sizes = Sizes(len(self.slots), planned.rows, planned.part)
        self.recipe = Recipe(source, sampler, layout, self.sizes.rows, folder)

    def __repr__(self) -> str:
        return f"<Kitchen of {self.source.name}, {self.sizes}>"

    @property
    def pantry(self) -> Pantry:
        """A new one over this memory."""
        config, source = self.config, self.source
        positions = budget(config.train.epochs, len(source.train))
        offer = Offer(
            config.id, self.recipe.layout, self.blocks.door, self.blocks.nonce, len(source.train), len(source.held_out)
        )
        return Pantry(offer, Ring(self.sizes, positions, len(source.held_out)), self.slots, self.blocks)


def _first_layout(source: Source, sampler: Sampler) -> Layout:
    """Of the first sample that can be read. Raises DataError."""
    fault = DataError("the data set has no samples")
    for position in range(min(MOST_UNREADABLE, len(source.train))):
        try:
            return read(source, sampler, False, position, position + 1)[1]
        except DataError as error:
            fault = error
    raise fault


async def _serve(kitchen: Kitchen, workers: Sequence[Worker], listen: Endpoint, lifeline: Lifeline) -> None:
    """Until the process ends, or a worker does. Raises DataError, CannotListenError, OSError."""
    pantry = kitchen.pantry
    try:
        async with open_transport() as transport, transport.serve(listen) as server, open_pantry(pantry, workers):
            server.add(pantry.service())
            while True:
                for worker in workers:
                    worker.check()
                lifeline.say({**_standing(pantry), "endpoint": str(server.endpoint)})
                await asyncio.sleep(BEAT_SECONDS)
    except* (DataError, CannotListenError, ConfigError, OSError) as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _standing(pantry: Pantry) -> dict[str, str | int]:
    """For the client's status."""
    now, mib = pantry.ring.statistics(), pantry.offer.layout.slot_bytes(pantry.ring.sizes.rows) / (1 << 20)
    text = (
        f"{pantry.offer.samples} samples, {now.handed} handed out to {pantry.num_trainers} trainers now, "
        f"{now.leased} of {now.slots} slots of {mib:.3g} MiB in use"
    )
    return {"phase": "serving", "text": text, "samples": pantry.offer.samples, "pid": os.getpid()}
