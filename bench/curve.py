"""What rounding on the wire costs in learning: the model of `configs/pydocs.yaml` with int8 both ways and with none.

Both runs of a seed begin with the same numbers and see the same samples and the same dropout, so they differ by the
codec alone. The stages stand in one process; between them every tensor is encoded and decoded as on a hop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.case import Case, Goal, Line
from bench.workers import open_worker
from distqat.config import RunConfig, load
from distqat.data.sampler import Sampler
from distqat.data.sources import Source, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.build import build_stage
from distqat.model.stage import Stage
from distqat.pipeline.split import split
from distqat.roles.trials import to_tensors
from distqat.wire import tensors

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "pydocs.yaml"
CODECS = ("int8", "none")
SEEDS = (1, 2, 3)
AT_END = Goal("ratio", 0.99)
WITHIN_A_SEED = Goal("value", 1.0)


@dataclass(frozen=True)
class Length:
    """How much is trained and looked at."""

    looks: tuple[int, ...]
    """Steps after which the held-out loss is taken; the last is the end."""
    windows: int
    """Held-out samples of a look."""


FULL = Length((75, 150, 225, 300), 1024)
QUICK = Length((12,), 128)


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Held-out losses of three seeds on the way and at the end."""
    length = QUICK if quick else FULL
    async with (
        open_worker(CODECS[0], open_learner, CODECS[0]) as rounded,
        open_worker(CODECS[1], open_learner, CODECS[1]) as exact,
    ):
        learners = (rounded, exact)
        pairs = [await asyncio.gather(*(one.ask("learn", seed, length) for one in learners)) for seed in SEEDS]
    for line in lines(pairs, length):
        yield line


def lines(pairs: Sequence[Sequence[Sequence[float]]], length: Length) -> Iterator[Line]:
    """From the losses of each seed: those of the rounded run, and those of the exact one."""
    for number, steps in enumerate(length.looks):
        name = f"pydocs, {len(SEEDS)} seeds, held-out loss after {steps} steps, {CODECS[0]} both ways"
        goal = AT_END if steps == length.looks[-1] else None
        ours, peers = ([losses[number] for losses in found] for found in zip(*pairs, strict=True))
        yield Case("curve", name, "nats/byte", "lower", f"codec {CODECS[1]}", goal).line(ours, peers)
    apart = [abs(rounded[-1] / exact[-1] - 1) * 100 for rounded, exact in pairs]
    name = f"pydocs, {len(SEEDS)} seeds, largest difference within a seed after {length.looks[-1]} steps"
    yield Case("curve", name, "%", "lower", goal=WITHIN_A_SEED).line([max(apart)])


class Learner:
    """Trains the model again and again, always with the same codec."""

    def __init__(self, config: RunConfig, source: Source, codec: str) -> None:
        self._config = config
        self._source = source
        self._codec = codec

    async def learn(self, seed: int, length: Length) -> list[float]:
        """Held-out losses at the looks."""
        run = self._config.run.model_copy(update={"seed": seed})
        stages = self._build(self._config.model_copy(update={"run": run}))
        sampler, size = Sampler(len(self._source.train), seed), self._config.data.batch
        losses = []
        for step in range(1, length.looks[-1] + 1):
            indices = sampler.indices((step - 1) * size, step * size)
            self._step(stages, step, to_tensors(self._source.train.batch(indices)))
            if step in length.looks:
                losses.append(self._look(stages, length.windows))
        return losses

    def _build(self, config: RunConfig) -> list[Stage]:
        task, last = find_task(self._source.task), config.model.stages - 1
        return [
            build_stage(config, self._source.shape, index, task if index == last else None)
            for index in range(config.model.stages)
        ]

    def _step(self, stages: list[Stage], step: int, batch: dict[str, torch.Tensor]) -> None:
        samples = len(batch["inputs"])
        for index, part in enumerate(split(samples, self._config.data.microbatches)):
            id = MicrobatchId(step, index)
            targets = {name: tensor[part.start : part.stop] for name, tensor in batch.items()}
            hidden = targets.pop("inputs")
            for stage in stages[:-1]:
                hidden = self._across(stage.forward(id, hidden))
            gradient = stages[-1].loss(id, hidden, targets, samples).gradient
            for stage in reversed(stages[:-1]):
                assert gradient is not None
                gradient = stage.backward(id, self._across(gradient))
        for stage in stages:
            stage.commit(step)

    def _look(self, stages: list[Stage], windows: int) -> float:
        """Mean held-out loss; the codec is there too, as in an evaluation of the swarm."""
        targets = to_tensors(self._source.held_out.batch(np.arange(windows)))
        hidden = targets.pop("inputs")
        id = MicrobatchId(stages[0].version + 1, 0)
        for stage in stages[:-1]:
            hidden = self._across(stage.forward(id, hidden, train=False))
        return stages[-1].loss(id, hidden, targets, windows, train=False).sums["loss"] / windows

    def _across(self, tensor: torch.Tensor) -> torch.Tensor:
        headers, payload = tensors.encode({"hidden": tensor}, self._codec)
        return tensors.decode(headers, memoryview(bytes(payload)))["hidden"]


@asynccontextmanager
async def open_learner(codec: str) -> AsyncIterator[Learner]:
    """On one thread."""
    torch.set_num_threads(1)
    config = load(CONFIG).run_config()
    yield Learner(config, await asyncio.to_thread(open_source, config), codec)
