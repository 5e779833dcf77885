"""Courses of training that are cut, and what is left of them: parameters, and who has counted what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from distqat.config import RunConfig
from distqat.data.tasks import find_task
from distqat.ids import Endpoint
from distqat.model.agreement import Verdict
from distqat.model.build import build_stage
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.pipeline.link import Link, open_route
from distqat.pipeline.route import HopError, Limits
from distqat.rpc.local import Network
from tests.pipeline.cuts import Cut, CutTransport, Point, Scissors
from tests.pipeline.swarm import LIMITS, ME, TINY, Expert, Recipe, Swarm, Tensors, add_expert, peer
from tests.support import until

MAX_BREAKS = 12
"""More than any plan of cuts can cause; else a route never opens again."""


@dataclass(frozen=True)
class Course:
    """What is trained, and how."""

    name: str
    recipe: Recipe = TINY
    stages: int = 3
    microbatches: int = 4
    steps: int = 3
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the run's config, by section."""
    spike: float = 1.0
    """Factor of the inputs of step 2."""

    def __str__(self) -> str:
        return self.name

    def config(self) -> RunConfig:
        config = self.recipe.config(self.stages)
        return config.model_copy(
            update={name: getattr(config, name).model_copy(update=change) for name, change in self.settings.items()}
        )

    def limits(self, base: Limits = LIMITS) -> Limits:
        """What the settings say of routes, with the times of `base`."""
        config = self.config()
        return replace(
            base,
            max_in_flight=config.pipeline.max_in_flight,
            wire=config.wire,
            has_offsets=config.quant.has_offsets,
            optimizer=config.optimizer,
            precision=config.train.precision,
        )

    def stage(self, index: int) -> Stage:
        task = find_task(self.recipe.task) if index == self.stages - 1 else None
        return build_stage(self.config(), self.recipe.shape, index, task)

    def batch(self, step: int) -> Tensors:
        batch = self.recipe.batch(step)
        if step == 2 and self.spike != 1.0:
            batch["inputs"] = batch["inputs"] * self.spike
        return batch

    def shorter(self, steps: int) -> Course:
        """The same, with fewer steps."""
        return replace(self, steps=steps)

    @property
    def hops(self) -> list[str]:
        """The names of the hops, the trainer's first; a stage's own one is the one above it."""
        names = ["trainer", *(peer(index) for index in range(self.stages))]
        return [f"{above}>{below}" for above, below in pairwise(names)]

    def hop_of(self, point: Point) -> str:
        """The hop itself, or the one above the stage."""
        return point.where if point.where in self.hops else self.hops[int(point.where.removeprefix("stage "))]


@dataclass(frozen=True)
class Result:
    """What a course has come to."""

    states: list[torch.Tensor]
    """Parameters and running statistics of each stage."""
    counts: list[list[tuple[int, int]]]
    """Steps and samples, as each stage has counted them."""
    breaks: int
    scissors: Scissors

    def equals(self, other: Result) -> bool:
        """Bit for bit."""
        return all(torch.equal(mine, its) for mine, its in zip(self.states, other.states, strict=True))


@dataclass(frozen=True)
class Newcomer:
    """A stage without steps of its own that takes a seat after the first break."""

    index: int
    states: Sequence[torch.Tensor]
    """What to begin with, by committed steps."""


@asynccontextmanager
async def open_course(course: Course, scissors: Scissors, network: Network, device: Device) -> AsyncIterator[Swarm]:
    """Experts whose hops and stages go by the scissors."""
    async with AsyncExitStack() as stack:
        trainer = CutTransport(network.transport("trainer"), "trainer", scissors)
        swarm = Swarm(course.config().id, trainer, [], [], [], course.limits())
        for index in range(course.stages):
            transport = CutTransport(network.transport(peer(index)), peer(index), scissors)
            server = await stack.enter_async_context(transport.serve(Endpoint(peer(index), 0)))
            stage = course.stage(index)
            scissors.watch(stage)
            add_expert(swarm, Expert(stage, device), transport, server.endpoint)
            server.add(swarm.services[-1].service())
            swarm.servers.append(server)
        yield swarm


async def run_course(
    course: Course, device: Device, plan: Sequence[Cut] = (), newcomer: Newcomer | None = None
) -> Result:
    """Train to the end, with a new route after every break."""
    network = Network(seed=3)
    scissors = Scissors(network, plan)

    async def broken(known: int, breaks: int, error: HopError) -> None:
        if newcomer is not None and breaks == 1:
            await _take_seat(course, swarm, newcomer, known, device)

    async with open_course(course, scissors, network, device) as swarm:
        breaks = await train_through(course, swarm, broken)
        return Result(states_of(swarm), [expert.steps for expert in swarm.experts], breaks, scissors)


Broken = Callable[[int, int, HopError], Awaitable[None]]
"""Called after a break with the step that the trainer knows of, the number of breaks, and what it was told."""


async def train_through(course: Course, swarm: Swarm, broken: Broken) -> int:
    """What a trainer does: train until all steps are committed, with a new route after every break. The breaks."""
    breaks = known = 0
    verdict: Verdict | None = None
    is_over, last = False, ""
    while not is_over:
        assert breaks <= MAX_BREAKS, f"the route does not open again: {last}"
        link: Link | None = None
        try:
            async with open_route(swarm.transport, ME, swarm.run, swarm.route(), known, swarm.limits, verdict) as link:
                is_over = link.step == course.steps
                await _train(course, link)
        except HopError as error:
            breaks, last = breaks + 1, str(error)
            await broken(link.step if link is not None else known, breaks, error)
        if link is not None:
            known, verdict = link.step, link.verdict
    return breaks


def states_of(swarm: Swarm) -> list[torch.Tensor]:
    """Parameters and running statistics of each stage."""
    return [expert.stage.flatten() for expert in swarm.experts]


async def _train(course: Course, link: Link) -> None:
    first = link.step + 1
    for step in range(first, course.steps + 1):
        await link.submit(step, course.batch(step), course.microbatches, (step - 1) / course.steps)
        if step > first:
            await link.result(step - 1)
    if first <= course.steps:
        await link.result(course.steps)


async def _take_seat(course: Course, swarm: Swarm, newcomer: Newcomer, known: int, device: Device) -> None:
    """Replace a stage by one that begins where the others are, once the broken route has ended everywhere."""
    await until(lambda: all(service.opening is None for service in swarm.services))
    await device.run(lambda: None)
    others = [expert.stage.version for expert in swarm.experts if expert.stage.index != newcomer.index]
    stage = course.stage(newcomer.index)
    stage.scatter([0], newcomer.states[max([known, *others])])
    swarm.experts[newcomer.index].stage = stage
    swarm.experts[newcomer.index].steps.clear()
