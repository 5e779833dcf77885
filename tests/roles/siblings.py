"""Siblings with real stages, real averagers and rounds beside steps, on a network in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import torch

from distqat.averaging.averager import Averager
from distqat.averaging.context import Context
from distqat.averaging.context import Sibling as Listed
from distqat.averaging.outer import OuterState
from distqat.averaging.service import services
from distqat.averaging.spans import Shape
from distqat.config import RunConfig
from distqat.ids import Endpoint, MicrobatchId, PeerId, RunId, StageIndex
from distqat.model.build import build_stage
from distqat.model.stage import Stage
from distqat.roles.journal import Journal
from distqat.roles.rounds import Rounds
from distqat.rpc.local import Network
from distqat.telemetry import Telemetry
from tests.model import helpers
from tests.roles.circle import Inline

T = TypeVar("T")

MODEL = "resnet"
"""With batch norm, so that there are running statistics."""

SAMPLES = 8


def run_config(**sync: Any) -> RunConfig:
    """A whole model in one stage, with these settings of rounds."""
    run = helpers.config(MODEL, 1)
    return RunConfig.model_validate({**run.model_dump(), "sync": {"codec": "none", "clip": 0.0, **sync}})


def build(run: RunConfig) -> Stage:
    """The stage of a sibling, with fresh numbers; all begin alike."""
    return build_stage(run, helpers.MODELS[MODEL][0], 0, helpers.CrossEntropy())


def learn(stage: Stage, rank: int, step: int) -> None:
    """One inner step of that sibling, on data of its own."""
    inputs, labels = helpers.batch(helpers.MODELS[MODEL][0], 1000 * rank + step, SAMPLES)
    stage.loss(MicrobatchId(step, 0), inputs, {"labels": labels}, SAMPLES)
    stage.commit(step)


class Real:
    """One sibling."""

    def __init__(self, rank: int, stage: Stage, averager: Averager) -> None:
        self.rank = rank
        self.stage = stage
        self.averager = averager
        self.step = 0
        self.rounds = Rounds(stage, Inline(), averager, Journal(Telemetry(), stage.name), lambda: False)  # type: ignore[arg-type]

    @property
    def committed(self) -> OuterState:
        assert self.averager.outer is not None
        return self.averager.outer

    async def steps(self, number: int) -> None:
        """Take so many steps of a second each."""
        for _ in range(number):
            await self.rounds.opened()
            await asyncio.sleep(1.0)
            self.step += 1
            learn(self.stage, self.rank, self.step)
            self.rounds.count(SAMPLES)
            await self.rounds.boundary()


@asynccontextmanager
async def circle(run: RunConfig, number: int = 2) -> AsyncIterator[list[Real]]:
    """So many siblings that have founded the run and take their rounds."""
    network = Network()
    siblings: list[Real] = []
    async with AsyncExitStack() as stack:
        for rank in range(number):
            siblings.append(await stack.enter_async_context(_sibling(run, network, rank, siblings)))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(sibling.rounds.work()) for sibling in siblings]
        try:
            yield siblings
        finally:
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def _sibling(run: RunConfig, network: Network, rank: int, siblings: Sequence[Real]) -> AsyncIterator[Real]:
    name = f"sibling{rank}"
    transport, stage = network.transport(name), build(run)
    async with transport.serve(Endpoint(name, 0)) as server:
        context = Context(
            me=PeerId(name),
            endpoint=server.endpoint,
            run=RunId("test", "0" * 32),
            stage=StageIndex(0),
            shapes=tuple(Shape(held.num_parameters, held.num_elements) for held in stage.fragments),
            transport=transport,
            device=Inline(),
            sync=run.sync,
            siblings=lambda: _listed(siblings, rank),
            on_lost=lambda peer, reason: None,
        )
        async with Averager.open(context) as averager:
            for service in services(averager):
                server.add(service)
            await averager.found(stage.gather(range(len(stage.fragments))))
            yield Real(rank, stage, averager)


def _listed(siblings: Sequence[Real], rank: int) -> list[Listed]:
    return [
        Listed(
            PeerId(f"sibling{one.rank}"), one.averager.context.endpoint, one.committed.round, one.committed.digest, True
        )
        for one in siblings
        if one.rank != rank
    ]


async def together(siblings: Sequence[Real], work: Callable[[Real], Any]) -> None:
    """The same of all siblings at once."""
    async with asyncio.TaskGroup() as group:
        for sibling in siblings:
            group.create_task(work(sibling))


def places(stage: Stage, fragment: int) -> torch.Tensor:
    """Where the elements of a fragment lie in the stage's flat vector."""
    slots = [stage.layout[place] for place in stage.fragments[fragment].slots]
    return torch.cat([torch.arange(slot.offset, slot.offset + slot.size) for slot in slots])
