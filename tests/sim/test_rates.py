"""Pipelines of unequal speed, whole and in virtual time: how much of it their experts wait for siblings in rounds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import pytest
from torch import Tensor

from distqat.averaging.averager import Averager, Outcome
from distqat.ids import StepRef
from distqat.model.device import Device, Priority
from distqat.roles import expert
from distqat.roles.status import SwarmStatus
from tests.sim.swarm import World, open_world, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

T = TypeVar("T")

SECONDS: Mapping[Priority, float] = {Priority.FORWARD: 0.004, Priority.BACKWARD: 0.008, Priority.OTHER: 0.0}
"""Of one piece of work on the fastest expert."""

SLOWNESS: ContextVar[float] = ContextVar("slowness", default=1.0)
"""Of the expert that is being started."""

UNEQUAL = (1.0, 1.0, 1.0, 4.0)

MICROBATCH = 4
"""Samples."""

EVERY_STEP = (f"data.batch={8 * MICROBATCH}", "data.microbatches=8", "sync.warmup_steps=100000")
"""A round after each, where waiting costs the most."""


class SlowDevice(Device):
    """Work takes virtual seconds, one piece after the other."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.slowness = SLOWNESS.get()
        self.turn = asyncio.Lock()

    async def run(self, work: Callable[[], T], priority: Priority = Priority.OTHER) -> T:
        async with self.turn:
            await asyncio.sleep(self.slowness * SECONDS[priority])
            return await super().run(work, priority)


class Watch:
    """Seconds that experts spend in rounds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds: list[list[float]] = []  # When each began and ended.
        synchronise = Averager.synchronise

        async def timed(averager: Averager, local: Tensor, samples: int, origins: tuple[StepRef, ...] = ()) -> Outcome:
            loop = asyncio.get_running_loop()
            times = [loop.time(), math.inf]
            self.rounds.append(times)
            try:
                return await synchronise(averager, local, samples, origins)
            finally:
                times[1] = loop.time()

        monkeypatch.setattr(Averager, "synchronise", timed)

    def idle(self, begin: float, end: float, num_experts: int) -> float:
        """Mean share of this time that an expert was in a round; the exchange itself takes a few milliseconds."""
        inside = (max(0.0, min(end, last) - max(begin, first)) for first, last in self.rounds)
        return sum(inside) / ((end - begin) * num_experts)


@asynccontextmanager
async def unequal_world(folder: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> AsyncIterator[World]:
    """One pipeline for each slowness, of whose two experts the first is that slow; all are training."""
    monkeypatch.setattr(expert, "Device", SlowDevice)
    async with open_world(folder, *EVERY_STEP, *settings) as world:
        world.network.delay = 0.0002
        await world.start("head", "client")
        for number, slowness in enumerate(UNEQUAL):
            token = SLOWNESS.set(slowness)
            await world.start(f"first{number}", "expert", join="head", stage=0)
            SLOWNESS.reset(token)
            await world.start(f"second{number}", "expert", join="head", stage=1)
        await world.until("head", lambda s: len(training(s)) == len(UNEQUAL))
        yield world


def counts(status: SwarmStatus) -> list[int]:
    """Microbatches a step, by pipeline."""
    return sorted(line.microbatches for line in status.pipelines())


def weighs_all(status: SwarmStatus) -> bool:
    """Whether the samples of everybody's step, and so everybody's weight, are in the last round of every expert."""
    samples = sum(counts(status)) * MICROBATCH
    last = [expert.receipts[-1] for _, expert in status.experts()]
    return all(len(receipt.contributors) == len(UNEQUAL) and receipt.samples == samples for receipt in last)


async def at_rest(world: World, num_steps: int = 24) -> None:
    """Until no number has changed for so many steps: longer than any pipeline takes to change it again."""
    seen, since = list[int](), 0

    def is_at_rest(status: SwarmStatus) -> bool:
        nonlocal seen, since
        if counts(status) != seen:
            seen, since = counts(status), steps(status)
        return steps(status) >= since + num_steps

    await world.until("head", is_at_rest, pause=0.12)


async def idle_share(world: World, watch: Watch, num_steps: int) -> float:
    """Of so many steps from now on."""
    loop = asyncio.get_running_loop()
    status = await world.status("head")
    begin, before = loop.time(), steps(status)
    await world.until("head", lambda s: steps(s) >= before + num_steps, pause=0.12)
    return watch.idle(begin, loop.time(), len(status.experts()))


@pytest.mark.soak
def test_fixed_batches_lose_more_than_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        watch = Watch(monkeypatch)
        async with unequal_world(tmp_path, monkeypatch, "data.adaptive=false") as world:
            status = await world.until("head", lambda s: steps(s) >= 8, pause=0.12)
            assert counts(status) == [8, 8, 8, 8]
            assert await idle_share(world, watch, 24) > 0.5

    run_virtual(scenario(), debug=False)


def test_adaptive_batches_lose_less_than_a_tenth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        watch = Watch(monkeypatch)
        async with unequal_world(tmp_path, monkeypatch) as world:
            await world.until("head", lambda s: min(counts(s)) <= 3, pause=0.12)
            await at_rest(world)
            assert await idle_share(world, watch, 24) < 0.1
            await world.until("head", weighs_all, pause=0.12)

    run_virtual(scenario(), debug=False)
