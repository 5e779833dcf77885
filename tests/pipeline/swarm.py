"""A pipeline in one process: real stages on one device, experts behind the network in memory, and a trainer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from distqat.config import RunConfig
from distqat.data.tasks import find_task
from distqat.errors import DistqatError
from distqat.ids import Endpoint, MicrobatchId, PeerId, PipelineId, RunId, Seat, StepRef
from distqat.model.agreement import LossScale, Verdict, decide, first_scale
from distqat.model.build import build_stage, build_whole
from distqat.model.device import Device
from distqat.model.shapes import DataShape
from distqat.model.stage import Stage
from distqat.model.terms import Terms
from distqat.pipeline.link import Link, open_route
from distqat.pipeline.messages import Open
from distqat.pipeline.route import Limits, Route
from distqat.pipeline.service import PipelineService
from distqat.pipeline.split import split
from distqat.quant_sections import QuantSection
from distqat.rpc.local import Network
from distqat.rpc.transport import Server, Transport
from distqat.sections import DataSection, ModelSection, OptimizerSection, Precision, RunSection, TrainSection
from distqat.wire_sections import WireSection

T = TypeVar("T")

Tensors = dict[str, torch.Tensor]

torch.set_num_threads(1)

ME = PeerId("trainer")
PIPELINE = PipelineId("p0")
LIMITS = Limits(open=5.0, stall=5.0, settle=5.0)


@dataclass(frozen=True)
class Recipe:
    """A model and the data that it takes."""

    model: str
    shape: DataShape
    task: str
    options: dict[str, int | float | str | bool | list[int]] = field(default_factory=dict)
    samples: int = 8
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    precision: Precision = "fp32"
    wire: WireSection = field(default_factory=WireSection)
    quant: QuantSection = field(default_factory=QuantSection)

    def config(self, stages: int) -> RunConfig:
        return RunConfig(
            run=RunSection(name="test", seed=11),
            model=ModelSection(name=self.model, stages=stages, options=self.options),
            data=DataSection(),
            optimizer=self.optimizer,
            train=TrainSection(precision=self.precision),
            wire=self.wire,
            quant=self.quant,
        )

    def limits(self, limits: Limits = LIMITS) -> Limits:
        """Those, with what the recipe says of the verdict on a step, and of the wire if it says something."""
        wire = limits.wire if self.wire == WireSection() else self.wire
        offsets = self.quant.has_offsets
        return replace(limits, optimizer=self.optimizer, precision=self.precision, wire=wire, has_offsets=offsets)

    def stage(self, index: int, stages: int) -> Stage:
        task = find_task(self.task) if index == stages - 1 else None
        return build_stage(self.config(stages), self.shape, index, task)

    def whole(self, stages: int = 1) -> Stage:
        """In one process; rounded where a cut into so many would send learned codes."""
        return build_whole(self.config(stages), self.shape, find_task(self.task))

    def batch(self, step: int) -> Tensors:
        """The samples of a step, always the same."""
        numbers = torch.Generator().manual_seed(1000 + step)
        if self.shape.kind == "image":
            inputs = torch.randn((self.samples, *self.shape.inputs), generator=numbers)
            labels = torch.randint(self.shape.classes, (self.samples,), generator=numbers)
        else:
            inputs = torch.randint(self.shape.classes, (self.samples, *self.shape.inputs), generator=numbers)
            labels = torch.randint(self.shape.classes, (self.samples, *self.shape.inputs), generator=numbers)
        return {"inputs": inputs, "labels": labels}


IMAGES = DataShape("image", (1, 8, 8), 10)
TINY = Recipe("mlp", DataShape("image", (1, 2, 2), 3), "cv", {"hidden": 4, "depth": 2}, samples=4)
MLP = Recipe("mlp", IMAGES, "cv", {"hidden": 16, "depth": 3})
RESNET = Recipe("resnet", IMAGES, "cv", {"width": 4})
GPT = Recipe("gpt", DataShape("tokens", (8,), 17), "llm", {"layers": 2, "heads": 2, "width": 8, "dropout": 0.2})


def train_whole(
    stage: Stage, recipe: Recipe, steps: Sequence[int], microbatches: int, scale: LossScale | None = None
) -> list[dict[str, float]]:
    """The oracle: the uncut model in one process, with plain calls. The sums of each step."""
    scale, sums = scale or first_scale(recipe.precision), []
    for step in steps:
        stage.loss_scale = scale.value
        sums.append(add_up(stage, step, recipe.batch(step), microbatches))
        verdict = Verdict(1.0, scale)
        if recipe.limits().needs_norms:
            verdict = decide(stage.square_norms(step), recipe.optimizer, recipe.precision, scale)
        stage.commit(step, Terms(progress_of(step), verdict.factor))
        scale = verdict.scale
    return sums


def train_step(stage: Stage, step: int, batch: Tensors, microbatches: int) -> dict[str, float]:
    """One plain step of the oracle: as it is, at the beginning of the run."""
    sums = add_up(stage, step, batch, microbatches)
    stage.commit(step)
    return sums


def progress_of(step: int) -> float:
    """The clock of the learning rate in these tests."""
    return min(1.0, (step - 1) / 32)


def add_up(stage: Stage, step: int, batch: Tensors, microbatches: int) -> dict[str, float]:
    """The gradients of a step, and its sums."""
    sums: dict[str, float] = {}
    for index, part in enumerate(split(len(batch["inputs"]), microbatches)):
        piece = {name: tensor[part.start : part.stop] for name, tensor in batch.items()}
        hidden = piece.pop("inputs")
        result = stage.loss(MicrobatchId(step, index), hidden, piece, len(batch["inputs"]))
        for name, value in result.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def run_plain(coro: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
    """Run without asyncio's debug mode, which would take longer than the numbers."""
    return asyncio.run(asyncio.wait_for(coro, timeout))


class Expert:
    """A host that writes down what happens to it."""

    def __init__(self, stage: Stage, device: Device) -> None:
        self.stage = stage
        self.device = device
        self.steps: list[tuple[int, int]] = []  # Committed, with their samples.
        self.settled = 0
        self.progress = 0
        self.begun: list[bool] = []
        self.openings: list[Open] = []
        self.closings: list[str] = []
        self.rounds_after: set[int] = set()  # Steps that an outer round follows; the first stage says so.
        self.orders: list[bool | None] = []  # What was heard of that.
        self.refusal: DistqatError | None = None  # Raised at the next opening.
        self.round: Callable[[], AbstractAsyncContextManager[None]] | None = None  # What an outer round does.

    async def opened(self, opening: Open) -> None:
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        self.openings.append(opening)

    async def begin(self, train: bool) -> None:
        self.begun.append(train)

    def orders_round(self, ordered: bool | None) -> bool:
        self.orders.append(ordered)
        return len(self.orders) in self.rounds_after

    async def committed(self, at: StepRef, samples: int) -> None:
        self.steps.append((at.step, samples))
        await self._round()

    async def settle(self) -> None:
        await self._round()
        self.settled += 1

    def progressed(self) -> None:
        self.progress += 1

    async def closed(self, reason: str) -> None:
        self.closings.append(reason)

    async def _round(self) -> None:
        if self.round is not None:
            async with self.round():
                pass


@dataclass
class Swarm:
    """Experts that listen, and a trainer's transport."""

    run: RunId
    transport: Transport
    experts: list[Expert]
    services: list[PipelineService]
    seats: list[Seat]
    limits: Limits
    servers: list[Server] = field(default_factory=list)
    epoch: int = 0

    def route(self, epoch: int | None = None, pipeline: PipelineId = PIPELINE) -> Route:
        """The route of a new epoch, or of that one."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        return Route(pipeline, self.epoch, tuple(self.seats))

    def open(
        self, step: int = 0, route: Route | None = None, verdict: Verdict | None = None
    ) -> AbstractAsyncContextManager[Link]:
        return open_route(self.transport, ME, self.run, route or self.route(), step, self.limits, verdict)

    def flat(self) -> torch.Tensor:
        """The parameters of all stages, then their running statistics, as the uncut model gives them."""
        stages = [expert.stage for expert in self.experts]
        parameters = [stage.flatten()[: stage.num_parameters] for stage in stages]
        return torch.cat([*parameters, *(stage.flatten()[stage.num_parameters :] for stage in stages)])


def peer(index: int) -> PeerId:
    return PeerId(f"expert{index}")


Wrap = Callable[[Transport, str], Transport]


@asynccontextmanager
async def open_swarm(
    recipe: Recipe,
    stages: int,
    limits: Limits = LIMITS,
    network: Network | None = None,
    wrap: Wrap = lambda transport, name: transport,
) -> AsyncIterator[Swarm]:
    """Experts for every stage, each on a host of its own in memory."""
    network = network or Network(seed=3)
    run = recipe.config(stages).id
    swarm = Swarm(run, wrap(network.transport("trainer"), "trainer"), [], [], [], recipe.limits(limits))
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(Device.open("cpu", threads=1))
        for index in range(stages):
            expert = Expert(recipe.stage(index, stages), device)
            transport = network.transport(peer(index))
            server = await stack.enter_async_context(transport.serve(Endpoint(peer(index), 0)))
            add_expert(swarm, expert, wrap(transport, peer(index)), server.endpoint)
            server.add(swarm.services[-1].service())
            swarm.servers.append(server)
        yield swarm


def add_expert(swarm: Swarm, expert: Expert, transport: Transport, endpoint: Endpoint) -> None:
    index = len(swarm.experts)
    service = PipelineService(expert, transport, peer(index), swarm.run, swarm.limits)
    swarm.experts.append(expert)
    swarm.services.append(service)
    swarm.seats.append(Seat(peer(index), endpoint, expert.stage.index))


async def train(link: Link, recipe: Recipe, steps: Sequence[int], microbatches: int) -> list[dict[str, float]]:
    """Steps through a route, each submitted while the one before is under way. The sums of each."""
    sums = []
    for step in steps:
        await link.submit(step, recipe.batch(step), microbatches, progress_of(step))
        if step > steps[0]:
            sums.append(dict((await link.result(step - 1)).sums))
    sums.append(dict((await link.result(steps[-1])).sums))
    return sums
