"""What makes samples: with samples that cannot be read, and when it does not answer."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distqat.config import load
from distqat.data.sampler import Sampler
from distqat.data.server.blocks import Blocks
from distqat.data.server.layout import Layout
from distqat.data.server.process import Kitchen
from distqat.data.server.ring import Job
from distqat.data.server.workers import Pace, Recipe, Worker, work
from distqat.data.sources import Arrays
from distqat.data.sources.splits import Indices
from distqat.errors import DataError
from tests.data.server.pantries import NUM_SAMPLES, RUN, SEED, Moving, a_source
from tests.support import run

ROWS = 8


class Damaged(Moving):
    """Sample `bad` raises that, whatever it is asked with."""

    bad: int
    fault: BaseException

    def batch(self, indices: Indices) -> Arrays:
        if self.bad in indices:
            raise self.fault
        return super().batch(indices)


def damaged(bad: int, fault: BaseException) -> Damaged:
    """At that position of the first epoch."""
    split = Damaged({"inputs": np.zeros((NUM_SAMPLES, 3), np.float32), "labels": np.arange(NUM_SAMPLES)})
    split.bad, split.fault = int(Sampler(NUM_SAMPLES, SEED).indices(bad, bad + 1)[0]), fault
    return split


def ask(control: socket.socket, block: str, begin: int) -> str:
    order = {"block": block, "slot": 0, "row": begin, "held_out": False, "begin": begin, "end": begin + 4}
    control.send(json.dumps(order).encode())
    return str(json.loads(control.recv(1 << 16))["fault"])


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        EOFError("marker"),
        struct.error("unpack"),
        zlib.error("incorrect header"),
        OSError(5, "Input/output error"),
        SyntaxError("broken PNG file"),
        AssertionError(),
        DataError("it is no picture"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_sample_that_cannot_be_read_is_a_fault_of_its_part_alone(tmp_path: Path, fault: Exception) -> None:
    source = replace(a_source(), train=damaged(2, fault))
    layout = Layout.of(source.train.batch(np.arange(0)))
    blocks = Blocks(tmp_path, RUN.digest)
    block = blocks.make(layout.slot_bytes(ROWS))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    recipe = Recipe(source, Sampler(NUM_SAMPLES, SEED), layout, ROWS, tmp_path)
    worker = threading.Thread(target=work, args=(recipe, theirs), daemon=True)
    worker.start()
    ours.settimeout(60.0)
    try:
        said = ask(ours, block.name, 0)
        assert "it is no picture" in said if isinstance(fault, DataError) else type(fault).__name__ in said
        assert ask(ours, block.name, 4) == ""
        assert ask(ours, block.name, 0) == said
    finally:
        ours.close()
        worker.join(60.0)
        theirs.close()
        blocks.close()
    assert not worker.is_alive()


def test_how_samples_lie_is_known_though_the_first_one_cannot_be_read(tmp_path: Path) -> None:
    config = load(None, ["data.server=on"]).run_config()
    split = bad_at_first(config.run.seed)
    kitchen = Kitchen(config, replace(a_source(), train=split), tmp_path)
    try:
        assert kitchen.recipe.layout == Layout.of(split.batch(np.arange(0)))
    finally:
        kitchen.blocks.close()


def bad_at_first(seed: int) -> Damaged:
    """The first sample of a run of that seed is bad."""
    split = damaged(0, EOFError("marker"))
    split.bad = int(Sampler(NUM_SAMPLES, seed).indices(0, 1)[0])
    return split


def test_one_that_does_not_answer_is_an_error_and_one_that_has_answered_meanwhile_is_none() -> None:
    job = Job(0, 0, False, 8, 16)

    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours, theirs:
            hung = Worker(1, ours, Pace(0.3, 0.0))
            with pytest.raises(DataError, match=r"a worker did not make samples 8 to 16 in 0.3 s"):
                await hung.make(job, "a block")
            # This process is stopped for longer than that, and finds the answer when it goes on.
            slow = Worker(1, ours, Pace(1.0, 0.0))
            asyncio.get_running_loop().call_soon(time.sleep, 2.0)
            theirs.send(b'{"fault": "a tear"}')
            assert await slow.make(job, "a block") == "a tear"

    run(main(), 60.0)


def test_a_worker_has_ten_times_as_long_as_the_slowest_samples() -> None:
    pace = Pace(30.0, 2.0)
    assert pace.limit(64) == 1280.0
    pace.took(10, 1.0)  # What the first sample took says nothing any more.
    assert pace.limit(64) == 64.0
    pace.took(64, 0.1)
    assert pace.limit(64) == 64.0
    assert pace.limit(1) == 30.0
    pace.took(10, 1e9)
    assert pace.limit(10) == 300.0
