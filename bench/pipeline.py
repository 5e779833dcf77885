"""A model in two stages against the same model in one process: samples per second, and how busy the stages are.

Three processes work together as in a swarm: an expert for each stage, and this one as the trainer. The bound is that of
1F1B (Narayanan et al. 2021) for stages of unequal cost: with M microbatches and a largest stage that has the share p of
the work, a step takes at least 1 + (M - 1) p times as long as a microbatch in one process; for S equal stages that is
the well-known M / (M + S - 1) of S times the speed. What S processes reach side by side on this machine is measured
too, since cores that are busy, or share a memory bus, are no fault of a pipeline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from bench.case import Case, Goal, Line, interleave
from bench.workers import Worker, open_worker
from distqat.config import DataSection, ModelSection, RunConfig, RunSection
from distqat.data.tasks import find_task
from distqat.ids import Endpoint, MicrobatchId, PeerId, PipelineId, Seat, StageIndex
from distqat.model.build import build_stage, build_whole
from distqat.model.device import Device
from distqat.model.shapes import DataShape
from distqat.model.stage import Stage
from distqat.pipeline.link import Link, open_route
from distqat.pipeline.messages import Open
from distqat.pipeline.route import Limits, Route
from distqat.pipeline.service import PipelineService
from distqat.pipeline.split import split
from distqat.rpc.grpc import open_transport

STAGES = 2
MICROBATCHES = 8
GOAL = Goal("ratio", 0.85)
ME = PeerId("trainer")
LIMITS = Limits(open=30.0, stall=30.0, settle=30.0)
SECONDS = 0.7
"""That one process works in one run; the steps of a run follow from it."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """A model and its batches."""

    model: str
    shape: DataShape
    task: str
    samples: int
    """In a batch."""

    def config(self, stages: int) -> RunConfig:
        """The run of it."""
        return RunConfig(
            run=RunSection(name="bench", seed=7),
            model=ModelSection(name=self.model, stages=stages),
            data=DataSection(),
        )

    def stage(self, index: int, stages: int) -> Stage:
        """One stage of it."""
        task = find_task(self.task) if index == stages - 1 else None
        return build_stage(self.config(stages), self.shape, index, task)

    def batch(self) -> Tensors:
        """Random samples, always the same."""
        numbers = torch.Generator().manual_seed(1)
        sizes = (self.samples, *self.shape.inputs)
        if self.shape.kind == "image":
            inputs = torch.randn(sizes, generator=numbers)
            labels = torch.randint(self.shape.classes, (self.samples,), generator=numbers)
        else:
            inputs = torch.randint(self.shape.classes, sizes, generator=numbers)
            labels = torch.randint(self.shape.classes, sizes, generator=numbers)
        return {"inputs": inputs, "labels": labels}


RECIPES = (
    Recipe("resnet", DataShape("image", (1, 8, 8), 10), "cv", samples=256),
    Recipe("gpt", DataShape("tokens", (64,), 256), "llm", samples=32),
)


@dataclass(frozen=True)
class Reached:
    """What one run has measured."""

    rate: float
    """Samples per second."""
    cpu: float
    """CPU seconds of all processes, for 1000 samples."""
    busy: float = 1.0
    """Share of the time in which the busiest stage computed."""


Runs = list[Reached]


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Each model: its rate beside one process and beside the bound, and how busy its stages are."""
    for recipe in RECIPES:
        async for line in _model(recipe, 3 if quick else 15):
            yield line


async def _model(recipe: Recipe, runs: int) -> AsyncIterator[Line]:
    async with AsyncExitStack() as stack:
        wholes = [await stack.enter_async_context(open_worker(f"whole {n}", open_whole, recipe)) for n in range(STAGES)]
        experts = [
            await stack.enter_async_context(open_worker(f"stage {index}", open_expert, recipe, index))
            for index in range(STAGES)
        ]
        link = await stack.enter_async_context(_open_link(recipe, experts))
        share = await wholes[0].ask("largest_share", STAGES)
        steps = await wholes[0].ask("steps_in", SECONDS)
        ours, one, together = await interleave(
            runs,
            partial(_through, link, recipe, experts, steps),
            partial(_side_by_side, wholes[:1], recipe, steps),
            partial(_side_by_side, wholes, recipe, steps),
        )
    for line in _lines(recipe, share, ours, one, together):
        yield line


def _lines(recipe: Recipe, share: float, ours: Runs, one: Runs, together: Runs) -> list[Line]:
    """`share` is that of the largest stage."""
    name = f"{recipe.model}, {recipe.samples} samples, M={MICROBATCHES}, S={STAGES}"
    filled = MICROBATCHES * share / (1 + (MICROBATCHES - 1) * share)  # Of the time of the largest stage.
    bound = filled / share / STAGES
    side_by_side = f"{bound:.2f} x {STAGES} processes side by side (1F1B; largest stage {share:.0%})"
    rates = [run.rate for run in ours]
    return [
        Case("pipeline", name, "samples/s", "higher", "one process").line(rates, [run.rate for run in one]),
        Case("pipeline", f"{name}: bound", "samples/s", "higher", side_by_side, GOAL).line(
            rates, [bound * run.rate for run in together]
        ),
        Case("pipeline", f"{name}: busiest stage", "share of time", "higher", "1F1B", GOAL).line(
            [run.busy for run in ours], [filled]
        ),
        Case("pipeline", f"{name}: CPU", "s/1000 samples", "lower", "one process").line(
            [run.cpu for run in ours], [run.cpu for run in one]
        ),
    ]


# The trainer.


@asynccontextmanager
async def _open_link(recipe: Recipe, experts: list[Worker]) -> AsyncIterator[Link]:
    seats = [
        Seat(PeerId(f"expert{index}"), await expert.ask("endpoint"), StageIndex(index))
        for index, expert in enumerate(experts)
    ]
    route = Route(PipelineId("p0"), 1, tuple(seats))
    async with (
        open_transport() as transport,
        open_route(transport, ME, recipe.config(STAGES).id, route, 0, LIMITS) as link,
    ):
        yield link


async def _through(link: Link, recipe: Recipe, experts: list[Worker], steps: int) -> Reached:
    """Steps through the pipeline, each submitted while the one before is under way."""
    batch, samples = recipe.batch(), steps * recipe.samples
    before = [await expert.ask("spent") for expert in experts]
    first, began, cpu = link.step + 1, time.perf_counter(), time.process_time()
    for step in range(first, first + steps):
        await link.submit(step, batch, MICROBATCHES)
        if step > first:
            await link.result(step - 1)
    await link.result(first + steps - 1)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    spent = [await expert.ask("spent") - then for expert, then in zip(experts, before, strict=True)]
    cpu += sum(one.cpu for one in spent)
    return Reached(samples / seconds, cpu / samples * 1000, max(one.busy for one in spent) / seconds)


async def _side_by_side(wholes: list[Worker], recipe: Recipe, steps: int) -> Reached:
    """As many steps in each of the processes at once."""
    samples = steps * recipe.samples
    took = await asyncio.gather(*(whole.ask("train", steps) for whole in wholes))
    cpu = sum(cpu for _, cpu in took) / (len(wholes) * samples)
    return Reached(sum(samples / seconds for seconds, _ in took), cpu * 1000)


# An expert.


@dataclass(frozen=True)
class Spent:
    """Seconds so far."""

    busy: float
    """Of the device."""
    cpu: float
    """Of the process."""

    def __sub__(self, then: Spent) -> Spent:
        return Spent(self.busy - then.busy, self.cpu - then.cpu)


class Expert:
    """A host that does nothing but its stage's work."""

    def __init__(self, stage: Stage, device: Device, endpoint: Endpoint) -> None:
        self.stage = stage
        self.device = device
        self.listens = endpoint

    async def endpoint(self) -> Endpoint:
        """Where it listens."""
        return self.listens

    async def spent(self) -> Spent:
        """Seconds so far."""
        return Spent(self.device.statistics().busy_seconds, time.process_time())

    async def opened(self, opening: Open) -> None:
        """Every route is welcome."""

    async def begin(self, train: bool) -> None:
        """Nothing to wait for."""

    async def committed(self, step: int, samples: int) -> None:
        """No rounds."""

    async def settle(self) -> None:
        """No rounds."""

    def progressed(self) -> None:
        """No lease."""

    async def closed(self, reason: str) -> None:
        """Nothing to clean up."""


@asynccontextmanager
async def open_expert(recipe: Recipe, index: int) -> AsyncIterator[Expert]:
    """Listens for routes to one stage."""
    async with (
        Device.open("cpu", threads=1) as device,
        open_transport() as transport,
        transport.serve(Endpoint("127.0.0.1", 0)) as server,
    ):
        stage = await device.run(partial(recipe.stage, index, STAGES))
        expert = Expert(stage, device, server.endpoint)
        peer = PeerId(f"expert{index}")
        server.add(PipelineService(expert, transport, peer, recipe.config(STAGES).id, LIMITS).service())
        yield expert


# One process.


class Whole:
    """The uncut model on one thread."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stage = build_whole(recipe.config(1), recipe.shape, find_task(recipe.task))

    async def train(self, steps: int) -> tuple[float, float]:
        """Seconds and CPU seconds of so many steps."""
        batch, began, cpu = self.recipe.batch(), time.perf_counter(), time.process_time()
        for _ in range(steps):
            _step([self.stage], batch)
        return time.perf_counter() - began, time.process_time() - cpu

    async def steps_in(self, seconds: float) -> int:
        """Steps that take about so long."""
        await self.train(2)
        took, _ = await self.train(3)
        return max(2, round(seconds / (took / 3)))

    async def largest_share(self, stages: int) -> float:
        """Of the work of a step, CPU time, in the most expensive stage."""
        cut = [self.recipe.stage(index, stages) for index in range(stages)]
        batch = self.recipe.batch()
        rounds = [_step(cut, batch) for _ in range(7)][2:]
        costs = [median(seconds[index] for seconds in rounds) for index in range(stages)]
        return max(costs) / sum(costs)


def _step(stages: list[Stage], batch: Tensors) -> list[float]:
    """One step through all stages in this thread; CPU seconds of each."""
    seconds = [0.0] * len(stages)
    step, samples = stages[0].version + 1, len(batch["inputs"])
    last = len(stages) - 1
    for index, part in enumerate(split(samples, MICROBATCHES)):
        id = MicrobatchId(step, index)
        targets = {name: tensor[part.start : part.stop] for name, tensor in batch.items()}
        hidden = targets.pop("inputs")
        for number, stage in enumerate(stages[:-1]):
            began = time.thread_time()
            hidden = stage.forward(id, hidden)
            seconds[number] += time.thread_time() - began
        began = time.thread_time()
        gradient = stages[last].loss(id, hidden, targets, samples).gradient
        seconds[last] += time.thread_time() - began
        for number in range(last - 1, -1, -1):
            assert gradient is not None
            began = time.thread_time()
            gradient = stages[number].backward(id, gradient)
            seconds[number] += time.thread_time() - began
    for number, stage in enumerate(stages):
        began = time.thread_time()
        stage.commit(step)
        seconds[number] += time.thread_time() - began
    return seconds


@asynccontextmanager
async def open_whole(recipe: Recipe) -> AsyncIterator[Whole]:
    """The baseline, built."""
    torch.set_num_threads(1)
    yield await asyncio.to_thread(Whole, recipe)
