"""A stage of the run at an expert, built: a seat or a follower makes use of it, and a promotion only changes which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from distqat.averaging.averager import Averager
from distqat.averaging.context import Context, Sibling
from distqat.averaging.service import services as averaging_services
from distqat.averaging.spans import Shape
from distqat.config import RunConfig
from distqat.data.sources import source_shape
from distqat.data.tasks import find_task
from distqat.ids import StageIndex
from distqat.model.build import build_stage
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.model.zoo import own
from distqat.pipeline.route import Limits
from distqat.pipeline.service import PipelineService
from distqat.roles.context import RoleContext
from distqat.roles.copies.giving import Giver
from distqat.roles.journal import Journal
from distqat.roles.seat import Seat
from distqat.telemetry import Reason


@dataclass(frozen=True, eq=False)
class Workshop:
    """With what an expert builds its stages, and on what they compute."""

    config: RunConfig
    device: Device
    side: Device
    """For whole vectors of rounds, which lie in the memory of the CPU: beside them the device goes on."""

    def build(self, index: StageIndex) -> Stage:
        """The stage, with fresh numbers."""
        shape = source_shape(self.config)
        task = find_task(shape.task, self.config.dataset)
        return build_stage(self.config, shape.data, index, task, self.device.torch_device)


@dataclass(frozen=True, eq=False)
class Holding:
    """A stage and its place among its siblings."""

    workshop: Workshop
    stage: Stage
    circle: Context
    averager: Averager
    journal: Journal

    def __repr__(self) -> str:
        return f"<Holding {self.stage.name}: {self.averager!r}>"


def check_model(context: RoleContext, config: RunConfig) -> None:
    """Raise ModelError for a model that is code, unless somebody here wants it: what a run says comes from others."""
    own.check(config.model.name, [context.settings.model.name, *context.settings.daemon.own_models])


def siblings(context: RoleContext, stage: StageIndex) -> list[Sibling]:
    """The live experts that have a seat of that stage, without this one."""
    return [
        Sibling(peer, entry.record.endpoint, entry.record.round, entry.record.digest, entry.record.ready)
        for peer, entry in sorted(context.directory.snapshot().experts.items())
        if peer != context.me and entry.record.seated and entry.record.stage == stage
    ]


@asynccontextmanager
async def open_holding(context: RoleContext, workshop: Workshop, index: StageIndex) -> AsyncIterator[Holding]:
    """The stage, built, until the end of the block."""
    # Not on the device: nothing else uses it yet, and reading torch for the first time takes seconds.
    stage = await asyncio.to_thread(workshop.build, index)
    journal = Journal(context.telemetry, stage.name)
    circle = Context(
        me=context.me,
        endpoint=context.endpoint,
        run=workshop.config.id,
        stage=index,
        shapes=tuple(Shape(held.num_parameters, held.num_elements) for held in stage.fragments),
        transport=context.transport,
        device=workshop.side,
        sync=workshop.config.sync,
        siblings=partial(siblings, context, index),
        on_lost=journal.losing(context.directory.mark_lost),
        on_refused=journal.refused,
    )
    async with Averager.open(circle) as averager:
        yield Holding(workshop, stage, circle, averager, journal)


@asynccontextmanager
async def open_seat(
    context: RoleContext, holding: Holding, reason: Reason
) -> AsyncIterator[tuple[Seat, PipelineService]]:
    """A seat of the stage, and its routes: what siblings, trainers and heirs ask is answered until the end."""
    workshop, circle, stage = holding.workshop, holding.circle, holding.stage
    seat = Seat(context, workshop.config, stage, workshop.device, holding.averager, holding.journal, reason)
    # To settle is a round of each fragment.
    limits = replace(Limits.of(workshop.config), settle=len(stage.fragments) * circle.waits.total)
    timelines = context.telemetry.timelines
    routes = PipelineService(seat, context.transport, context.me, workshop.config.id, limits, timelines)
    seat.is_told = lambda: not routes.standing.owed
    services = [*averaging_services(holding.averager), routes.service(), Giver(circle, seat).service()]
    for service in services:
        context.server.add(service)
    holding.journal.seated(True)
    try:
        yield seat, routes
    finally:
        holding.journal.seated(False)
        for service in services:
            await context.server.remove(service.name)
