"""A pipeline of ours in processes: an expert for each stage, a trainer beside the first. Each form of it has its route.

async with open_ours(recipe, forms, machines) as ours:
    reached = await ours.train(forms[0], steps)
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from bench.gauge import Gauge, Reached
from bench.machines import Machine
from bench.recipes import Recipe
from bench.workers import Worker, open_worker
from distqat.config import RunConfig
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex, StepRef
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.pipeline.link import Link, open_route
from distqat.pipeline.route import Limits, Route
from distqat.pipeline.service import PipelineService
from distqat.pipeline.words import Open
from distqat.rpc.grpc import GrpcTransport, open_transport
from distqat.sections import CodecName

ME = PeerId("trainer")
MICROBATCHES = 8


@dataclass(frozen=True)
class Form:
    """How a pipeline's tensors travel, in both directions."""

    codec: CodecName
    compression: Literal["auto", "on", "off"] = "off"

    def __str__(self) -> str:
        return self.codec if self.compression == "off" else f"{self.codec}, zstd {self.compression}"

    def config(self, recipe: Recipe, stages: int) -> RunConfig:
        """The run."""
        config = recipe.config(stages, self.codec)
        wire = config.wire.model_copy(update={"compression": self.compression})
        return config.model_copy(update={"wire": wire})

    def limits(self, config: RunConfig) -> Limits:
        """With waits that a busy machine does not exceed."""
        return replace(Limits.of(config), open=30.0, stall=60.0, settle=60.0)


@dataclass(frozen=True)
class Spent:
    """So far, in one process."""

    busy: float
    """Seconds in which the device computed."""
    sent: int
    """Bytes of messages."""


class Ours:
    """The processes."""

    def __init__(self, recipe: Recipe, experts: Sequence[Worker], trainer: Worker, gauge: Gauge) -> None:
        self._recipe = recipe
        self._experts = experts
        self._trainer = trainer
        self._gauge = gauge

    async def train(self, form: Form, steps: int) -> Reached:
        """So many steps, each submitted while the one before is under way."""
        samples = steps * self._recipe.samples
        before = [await worker.ask("spent") for worker in (*self._experts, self._trainer)]
        reached = await self._gauge.measure(samples, lambda: self._trainer.ask("train", form, steps))
        after = [await worker.ask("spent") for worker in (*self._experts, self._trainer)]
        pairs = list(zip(after, before, strict=True))
        return replace(
            reached,
            messages=sum(now.sent - then.sent for now, then in pairs) / samples,
            busy=max(now.busy - then.busy for now, then in pairs) * reached.rate / samples,
        )


@asynccontextmanager
async def open_ours(recipe: Recipe, forms: Sequence[Form], machines: Sequence[Machine]) -> AsyncIterator[Ours]:
    """A stage on each machine, the trainer on the first; one process holds a stage for each of the forms."""
    async with AsyncExitStack() as stack:
        experts = [
            await stack.enter_async_context(
                open_worker(f"stage {index}", open_expert, recipe, forms, index, machines, machine=machine)
            )
            for index, machine in enumerate(machines)
        ]
        found = [await expert.ask("endpoints") for expert in experts]
        routes = {form: [endpoints[form] for endpoints in found] for form in forms}
        trainer = await stack.enter_async_context(
            open_worker("trainer", open_trainer, recipe, routes, machine=machines[0])
        )
        yield Ours(recipe, experts, trainer, Gauge(machines, [worker.pid for worker in (*experts, trainer)]))


# An expert.


class Expert:
    """A host that does nothing but its stage's work."""

    def __init__(self, stage: Stage, device: Device) -> None:
        self.stage = stage
        self.device = device

    async def opened(self, opening: Open) -> None:
        """Every route is welcome."""

    async def begin(self, train: bool) -> None:
        """Nothing to wait for."""

    def orders_round(self, ordered: bool | None) -> bool:
        """No rounds."""
        return False

    async def committed(self, at: StepRef, samples: int) -> None:
        """No rounds."""

    async def settle(self) -> None:
        """No rounds."""

    def progressed(self) -> None:
        """No lease."""

    async def closed(self, reason: str) -> None:
        """Nothing to clean up."""


class Experts:
    """One process: a stage for each form, which share the device."""

    def __init__(self, device: Device, transport: GrpcTransport, listening: Mapping[Form, Endpoint]) -> None:
        self._device = device
        self._transport = transport
        self._listening = listening

    async def endpoints(self) -> Mapping[Form, Endpoint]:
        """Where the stage of each form listens."""
        return self._listening

    async def spent(self) -> Spent:
        """So far."""
        return Spent(self._device.statistics().busy_seconds, _sent(self._transport))


@asynccontextmanager
async def open_expert(
    recipe: Recipe, forms: Sequence[Form], index: int, machines: Sequence[Machine]
) -> AsyncIterator[Experts]:
    """Listens for routes to one stage, on a port for each form."""
    stages, listening = len(machines), {}
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(Device.open("cpu", threads=1))
        transport = await stack.enter_async_context(open_transport())
        for form in forms:
            server = await stack.enter_async_context(transport.serve(Endpoint(machines[index].host, 0)))
            config = form.config(recipe, stages)
            host = Expert(await device.run(partial(recipe.stage, index, stages)), device)
            service = PipelineService(host, transport, _name(index), config.id, form.limits(config))
            server.add(service.service())
            listening[form] = server.endpoint
        yield Experts(device, transport, listening)


# The trainer.


class Trainer:
    """One process: a route for each form."""

    def __init__(self, recipe: Recipe, transport: GrpcTransport, links: Mapping[Form, Link]) -> None:
        self._transport = transport
        self._links = links
        self._batch = recipe.batch()

    async def train(self, form: Form, steps: int) -> float:
        """Seconds of so many steps, with two of them under way."""
        link = self._links[form]
        first, began = link.step + 1, time.perf_counter()
        for step in range(first, first + steps):
            await link.submit(step, self._batch, MICROBATCHES)
            if step > first:
                await link.result(step - 1)
        await link.result(first + steps - 1)
        return time.perf_counter() - began

    async def spent(self) -> Spent:
        """So far."""
        return Spent(0.0, _sent(self._transport))


@asynccontextmanager
async def open_trainer(recipe: Recipe, routes: Mapping[Form, Sequence[Endpoint]]) -> AsyncIterator[Trainer]:
    """The routes through these endpoints, stage 0 first, open."""
    links = {}
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(open_transport())
        for form, endpoints in routes.items():
            seats = [Seat(_name(index), endpoint, StageIndex(index)) for index, endpoint in enumerate(endpoints)]
            route, config = Route(PipelineId(str(form)), 1, tuple(seats)), form.config(recipe, len(seats))
            opening = open_route(transport, ME, config.id, route, 0, form.limits(config))
            links[form] = await stack.enter_async_context(opening)
        yield Trainer(recipe, transport, links)


def _name(index: int) -> PeerId:
    return PeerId(f"expert{index}")


def _sent(transport: GrpcTransport) -> int:
    return sum(flow.sent for flow in transport.traffic().values())
