"""Steps beside outer rounds: how fast a pipeline trains while its stage is in a round, and while it is in none.

Two siblings, each in a process and on a machine of its own, which is a pipeline of one stage; the trainer is in the
same process, so all that passes the cable is the round's. A round begins every few steps, and is over long before the
next: steps with and without one alternate, so a busy machine is busy for both alike.

Once both train: they keep two cores busy, and where there are no more a round costs at least its CPU time. Once one
trains, and the other only takes part in its rounds: then there is a core beside the one that computes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch

from bench.case import Case, Goal, Line, interleave
from bench.machines import HERE, Machine, MachinesError, open_machines
from bench.recipes import Recipe
from bench.workers import Worker, open_worker
from distqat.averaging.averager import Averager
from distqat.averaging.context import Context, Sibling
from distqat.averaging.service import services
from distqat.averaging.spans import Shape
from distqat.config import RunConfig
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex, StepRef
from distqat.model.device import Device
from distqat.model.shapes import DataShape
from distqat.model.stage import Stage
from distqat.pipeline.link import Link, open_route
from distqat.pipeline.route import Limits, Route
from distqat.pipeline.service import PipelineService
from distqat.pipeline.words import Open
from distqat.roles.journal import Journal
from distqat.roles.rounds import Rounds
from distqat.rpc.grpc import open_transport
from distqat.sections import SyncSection
from distqat.telemetry import Telemetry

log = logging.getLogger(__name__)

RECIPE = Recipe("gpt", DataShape("tokens", (64,), 256), 4, (("width", 320), ("layers", 8), ("heads", 4)))
"""10 million parameters."""
MICROBATCHES = 2
MEGABITS = 100
SYNC = SyncSection(warmup_steps=0, inner_steps=12, overlap=11, max_wait=30.0)
STEPS = 48
RUNS = 3
QUICK_RUNS = 1
TICK = 0.005
"""Seconds between two looks of the event loop at the clock."""
AIM = Goal("ratio", 0.9)


@dataclass(frozen=True)
class Pass:
    """So many steps of one pipeline, in steps a second."""

    beside: float
    """While a round was under way."""
    alone: float
    """While none was."""
    seconds: float
    """Of a round, mean."""
    stall: float
    """Longest time for which the event loop did nothing else, in seconds."""


async def bench(quick: bool) -> AsyncIterator[Line]:
    """On loopback, and where machines can be made over a slow cable too."""
    runs = QUICK_RUNS if quick else RUNS
    async for line in _measure("loopback", (HERE, HERE), runs, None):
        yield line
    try:
        async with open_machines(2, MEGABITS * 1e6) as machines:
            async for line in _measure(f"{MEGABITS} Mbit/s", machines, runs, AIM):
                yield line
    except MachinesError as error:
        log.warning("left out: %s", error)


async def _measure(where: str, machines: Sequence[Machine], runs: int, goal: Goal | None) -> AsyncIterator[Line]:
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(
                open_worker(f"replica {rank}", open_replica, rank, machine, machine=machine)
            )
            for rank, machine in enumerate(machines)
        ]
        endpoints = [await replica.ask("endpoint") for replica in replicas]
        await _all(replicas, "begin", endpoints)
        for number, words in ((1, "one trains"), (2, "both train")):
            (found,) = await interleave(runs, partial(_all, replicas[:number], "train", STEPS))
            for line in lines(f"{where}, {RECIPE}, codec {SYNC.codec}, {words}", found, goal if number == 1 else None):
                yield line


def lines(name: str, found: Sequence[Sequence[Pass]], goal: Goal | None) -> Iterator[Line]:
    """From the passes of all pipelines in each run."""
    steps = Case("overlap", f"{name}: steps during a round", "steps/s", "higher", "the same without a round", goal)
    means = [[_mean([getattr(one, kind) for one in passes]) for passes in found] for kind in ("beside", "alone")]
    yield steps.line(*means)
    seconds = [_mean([one.seconds for one in passes]) for passes in found]
    yield Case("overlap", f"{name}: a round", "s", "lower").line(seconds)
    stalls = [max(one.stall for one in passes) * 1e3 for passes in found]
    yield Case("overlap", f"{name}: longest stall of the event loop", "ms", "lower").line(stalls)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


async def _all(replicas: Sequence[Worker], method: str, *arguments: object) -> list[Pass]:
    return list(await asyncio.gather(*(replica.ask(method, *arguments) for replica in replicas)))


def rates(moments: Sequence[float], spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Steps a second within these spans and outside of them, from the moments at which steps ended.

    A step counts by its part in them.
    """
    steps = seconds = 0.0
    for begin, end in pairwise(moments):
        inside = sum(max(0.0, min(end, until) - max(begin, since)) for since, until in spans)
        steps += inside / (end - begin)
        seconds += inside
    rest = moments[-1] - moments[0] - seconds
    return steps / seconds if seconds else 0.0, (len(moments) - 1 - steps) / rest if rest else 0.0


# In a process of its own.


class Noting(Journal):
    """Notes when rounds were under way."""

    def __init__(self) -> None:
        super().__init__(Telemetry(), "bench")
        self.spans: list[tuple[float, float]] = []

    @contextmanager
    def beside(self) -> Iterator[None]:
        """See Journal."""
        began = time.monotonic()
        yield
        self.spans.append((began, time.monotonic()))


class Host:
    """A stage whose rounds and steps are timed."""

    def __init__(self, stage: Stage, device: Device, averager: Averager) -> None:
        self.stage = stage
        self.device = device
        self.journal = Noting()
        self.rounds = Rounds(stage, device, averager, self.journal, lambda: not self.is_training)
        self.moments: list[float] = []  # At which the steps of this pass were committed.
        self.is_training = False
        self._averager = averager

    async def keep_company(self) -> None:
        """Join the rounds of the sibling that has not ended its steps yet."""
        while True:
            await self._averager.wait_invited()
            if self.is_training or self.rounds.is_beside:
                await asyncio.sleep(TICK)
            else:
                # As if it had learned something, so that it sends as much as the other.
                self.rounds.count(RECIPE.samples)
                await self.rounds.attend()

    async def opened(self, opening: Open) -> None:
        """Every route is welcome."""

    async def begin(self, train: bool) -> None:
        """See pipeline.host."""
        await self.rounds.opened()

    def orders_round(self, ordered: bool | None) -> bool:
        """See pipeline.host."""
        return self.rounds.orders_round(ordered)

    async def committed(self, at: StepRef, samples: int) -> None:
        """See pipeline.host."""
        self.moments.append(time.monotonic())
        self.rounds.count(samples)
        await self.rounds.boundary()

    async def settle(self) -> None:
        """See pipeline.host."""
        await self.rounds.settle()

    def progressed(self) -> None:
        """No lease."""

    async def closed(self, reason: str) -> None:
        """Nothing to clean up."""


class Replica:
    """A pipeline of one stage, with its trainer."""

    def __init__(self, host: Host, link: Link, endpoints: list[Endpoint]) -> None:
        self.host = host
        self.link = link
        self.endpoints = endpoints  # Of all replicas, by rank; empty until they are known.
        self.batch = RECIPE.batch()

    async def endpoint(self) -> Endpoint:
        """Where it listens."""
        return self.host.rounds._averager.context.endpoint

    async def begin(self, endpoints: list[Endpoint]) -> None:
        """These are the siblings."""
        self.endpoints[:] = endpoints

    async def train(self, steps: int) -> Pass:
        """So many steps, each submitted while the one before is under way; the last round ends after them."""
        host, link = self.host, self.link
        host.moments, host.journal.spans = [time.monotonic()], []
        host.is_training = True
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(_longest_stall())
            first = link.step + 1
            for step in range(first, first + steps):
                await link.submit(step, self.batch, MICROBATCHES)
                if step > first:
                    await link.result(step - 1)
            await link.result(first + steps - 1)
            ticking.cancel()
        spans = host.journal.spans
        seconds = sum(ended - began for began, ended in spans) / max(1, len(spans))
        found = Pass(*rates(host.moments, spans), seconds, STALLS.pop())
        await link.settle()
        host.is_training = False
        return found


STALLS: list[float] = []
"""What the ticking that was cancelled last has found."""


async def _longest_stall() -> None:
    longest, last = 0.0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            longest, last = max(longest, now - last - TICK), now
    finally:
        STALLS.append(longest)


@asynccontextmanager
async def open_replica(rank: int, machine: Machine) -> AsyncIterator[Replica]:
    """A pipeline of one stage on that machine, founded and open."""
    torch.set_num_threads(1)
    endpoints: list[Endpoint] = []
    config = RECIPE.config(1)
    config = config.model_copy(update={"sync": SYNC})
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(Device.open("cpu", threads=1))
        side = await stack.enter_async_context(Device.open("cpu", threads=1))
        transport = await stack.enter_async_context(open_transport())
        server = await stack.enter_async_context(transport.serve(Endpoint(machine.host, 0)))
        stage = await device.run(partial(RECIPE.stage, 0, 1))
        context = Context(
            me=_name(rank),
            endpoint=server.endpoint,
            run=config.id,
            stage=StageIndex(0),
            shapes=tuple(Shape(held.num_parameters, held.num_elements) for held in stage.fragments),
            transport=transport,
            device=side,
            sync=SYNC,
            siblings=lambda: _siblings(rank, endpoints, averager),
            on_lost=lambda peer, reason: log.warning("%s is lost: %s", peer, reason),
        )
        averager = await stack.enter_async_context(Averager.open(context))
        await averager.found(await device.run(partial(stage.gather, range(len(stage.fragments)))))
        host = Host(stage, device, averager)
        limits = _limits(config)
        pipeline = PipelineService(host, transport, _name(rank), config.id, limits)
        for service in (*services(averager), pipeline.service()):
            server.add(service)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        working = [group.create_task(work()) for work in (host.rounds.work, host.keep_company)]
        route = Route(PipelineId(f"p{rank}"), 1, (Seat(_name(rank), server.endpoint, StageIndex(0)),))
        opening = open_route(transport, PeerId("trainer"), config.id, route, 0, limits)
        link = await stack.enter_async_context(opening)
        try:
            yield Replica(host, link, endpoints)
        finally:
            for task in working:
                task.cancel()


def _limits(config: RunConfig) -> Limits:
    """With waits that a busy machine does not exceed."""
    return replace(Limits.of(config), open=30.0, stall=60.0, settle=600.0)


def _siblings(rank: int, endpoints: Sequence[Endpoint], averager: Averager) -> list[Sibling]:
    """What a directory would tell: all are alive, and as far as this one."""
    state = averager.outer
    if state is None:
        return []
    return [
        Sibling(_name(other), endpoint, state.round, state.digest, True)
        for other, endpoint in enumerate(endpoints)
        if other != rank
    ]


def _name(rank: int) -> PeerId:
    return PeerId(f"replica{rank}")
