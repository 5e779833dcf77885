"""Trains one arm after the other in a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

import torch

from bench.arms import BATCH, Arm
from bench.replicas import Tensors, evaluate, open_replicas
from bench.results import Result
from distqat.config import RunConfig
from distqat.data.sampler import Sampler
from distqat.data.sources import Source, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.build import build_stage
from distqat.roles.trials import to_tensors
from distqat.rpc.virtual import VirtualTimeLoop


class Found(TypedDict):
    """What a training has come to; see `Result`."""

    loss: float
    bytes: float
    rounds: int
    parameters: int


class Learner:
    """Holds the data."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def learn(self, arm: Arm, seed: int, steps: int) -> Result:
        """Train it so many steps, and look at what is committed then."""
        return await asyncio.to_thread(self._learn, arm, seed, steps)

    def _learn(self, arm: Arm, seed: int, steps: int) -> Result:
        torch.set_num_threads(1)
        began, config = time.monotonic(), arm.config(seed)
        if arm.sync is None:
            found = self._alone(arm, config, steps)
        else:
            with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
                found = runner.run(self._together(arm, config, steps))
        return Result(arm.name, seed, steps, arm.described(seed, steps), **found, seconds=time.monotonic() - began)

    def _alone(self, arm: Arm, config: RunConfig, steps: int) -> Found:
        stage = build_stage(config, self._source.shape, 0, find_task(self._source.task))
        sampler = Sampler(len(self._source.train), config.run.seed)
        for step in range(1, steps + 1):
            targets = self._batch(sampler, step, 0, arm.samples)
            stage.loss(MicrobatchId(step, 0), targets.pop("inputs"), targets, arm.samples)
            stage.commit(step)
        loss = evaluate(stage, self._source)
        return Found(loss=loss, bytes=0.0, rounds=0, parameters=stage.num_parameters)

    async def _together(self, arm: Arm, config: RunConfig, steps: int) -> Found:
        sampler = Sampler(len(self._source.train), config.run.seed)
        async with open_replicas(config, self._source, arm.replicas) as replicas:
            for step in range(1, steps + 1):
                places = range(arm.replicas)
                await replicas.step([self._batch(sampler, step, place, arm.samples) for place in places])
            await replicas.settle()
            sent = sum(replica.bytes for replica in replicas.members) / arm.replicas
            loss, parameters = replicas.evaluate(self._source), replicas.members[0].stage.num_parameters
            return Found(loss=loss, bytes=sent, rounds=replicas.rounds, parameters=parameters)

    def _batch(self, sampler: Sampler, step: int, place: int, samples: int) -> Tensors:
        """The part of a step's batch that lies at that place, when it is cut into parts of so many samples."""
        begin = (step - 1) * BATCH + place * samples
        return to_tensors(self._source.train.batch(sampler.indices(begin, begin + samples)))


@asynccontextmanager
async def open_learner(data: Arm) -> AsyncIterator[Learner]:
    """With the data of that arm."""
    yield Learner(await asyncio.to_thread(open_source, data.config(0)))
