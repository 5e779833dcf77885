"""The baseline: a model in one process, on as many threads as asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import torch

from bench.recipes import Recipe, Tensors
from distqat.ids import MicrobatchId
from distqat.model.stage import Stage
from distqat.pipeline.split import split


class Whole:
    """The uncut model."""

    def __init__(self, recipe: Recipe, microbatches: int) -> None:
        self.recipe = recipe
        self.microbatches = microbatches
        self.stage = recipe.whole()

    async def train(self, steps: int) -> float:
        """Seconds of so many steps."""
        batch, began = self.recipe.batch(), time.perf_counter()
        for _ in range(steps):
            _step([self.stage], batch, self.microbatches)
        return time.perf_counter() - began

    async def steps_in(self, seconds: float) -> int:
        """Steps that take about so long."""
        await self.train(1)
        return max(1, round(seconds / await self.train(1)))

    async def largest_share(self, stages: int) -> float:
        """Of the work of a step, CPU time, in the most expensive stage."""
        cut = [self.recipe.stage(index, stages) for index in range(stages)]
        batch = self.recipe.batch()
        rounds = [_step(cut, batch, self.microbatches) for _ in range(4)][1:]
        costs = [median(seconds[index] for seconds in rounds) for index in range(stages)]
        return max(costs) / sum(costs)


def _step(stages: list[Stage], batch: Tensors, microbatches: int) -> list[float]:
    """One step through all stages in this thread; CPU seconds of each."""
    seconds = [0.0] * len(stages)
    step, samples = stages[0].version + 1, len(batch["inputs"])
    last = len(stages) - 1
    for index, part in enumerate(split(samples, microbatches)):
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
async def open_whole(recipe: Recipe, microbatches: int, threads: int) -> AsyncIterator[Whole]:
    """The baseline, built."""
    torch.set_num_threads(threads)
    yield await asyncio.to_thread(Whole, recipe, microbatches)
