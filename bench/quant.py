"""What few bits cost in learning: `resnet` on digits, trained quantised, beside the same run in fp32.

The run of `configs/digits.yaml` as one process trains it, so a seed's runs see the same samples. As in the paper of LSQ
the first and the last layer have 8 bits where the others have fewer. Seconds are CPU seconds of the training thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.case import Case, Goal, Line
from bench.workers import open_worker
from distqat.config import RunConfig, load
from distqat.data.sampler import Sampler, budget
from distqat.data.sources import Source, evaluation_batches, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.build import build_whole
from distqat.model.stage import Stage
from distqat.pipeline.split import split
from distqat.quant_sections import QuantSection
from distqat.roles.trials import EVALUATION_BATCH, to_tensors

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "digits.yaml"
EXACT = "fp32"
ENDS = [
    {"match": "stem*", "weights": {"bits": 8}, "activations": {"bits": 8, "signed": True}},
    {"match": "head*", "weights": {"bits": 8}, "activations": {"bits": 8}},
]


def _quant(method: str, bits: int) -> dict[str, Any]:
    """Inputs of all layers but the first come from a relu."""
    weights, activations = {"bits": bits, "per": "channel"}, {"bits": bits, "signed": False}
    return {"method": method, "weights": weights, "activations": activations, "rules": ENDS}


FORMS: Mapping[str, dict[str, Any]] = {
    EXACT: {},
    "lsq w8a8": _quant("lsq", 8),
    "lsq w4a4": _quant("lsq", 4),
}
GOALS = {"lsq w8a8": Goal("value", 0.5), "lsq w4a4": Goal("value", 2.0)}


@dataclass(frozen=True)
class Length:
    """How much is trained."""

    seeds: tuple[int, ...]
    epochs: float
    forms: tuple[str, ...]


FULL = Length((1, 2, 3), 12.0, tuple(FORMS))
QUICK = Length((1,), 1.0, (EXACT, *GOALS))


@dataclass(frozen=True)
class Learned:
    """What one training has come to."""

    accuracy: float
    """Held-out, 0 to 1."""
    seconds: float
    """CPU seconds."""


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Points of accuracy that each form has less than fp32, and how much longer it computes."""
    length = QUICK if quick else FULL
    found: dict[str, list[Learned]] = {}
    async with open_worker("learner", open_learner) as learner:
        for form in length.forms:
            found[form] = [await learner.ask("learn", form, seed, length.epochs) for seed in length.seeds]
    for line in lines(found, length):
        yield line


def lines(found: Mapping[str, Sequence[Learned]], length: Length) -> Iterator[Line]:
    """From what was learned by each form, one for each seed."""
    exact = found[EXACT]
    name = f"digits, resnet, {length.epochs:g} epochs, {len(length.seeds)} seeds"
    yield Case("quant", f"{name}, {EXACT}: held-out accuracy", "%", "higher").line(
        [100 * one.accuracy for one in exact]
    )
    for form in length.forms:
        if form == EXACT:
            continue
        # A run that is cut short is still learning.
        goal = GOALS.get(form) if length is FULL else None
        lost = [100 * (one.accuracy - other.accuracy) for one, other in zip(exact, found[form], strict=True)]
        yield Case("quant", f"{name}, {form}: less than in {EXACT}", "points", "lower", goal=goal).line(lost)
        case = Case("quant", f"{name}, {form}: CPU seconds", "s", "lower", EXACT)
        yield case.line([one.seconds for one in found[form]], [one.seconds for one in exact])


class Learner:
    """Trains the model again and again."""

    def __init__(self, config: RunConfig, source: Source) -> None:
        self._config = config
        self._source = source

    async def learn(self, form: str, seed: int, epochs: float) -> Learned:
        """The whole budget, in this form."""
        run = self._config.run.model_copy(update={"seed": seed})
        quant = QuantSection.model_validate(FORMS[form])
        return self._learn(self._config.model_copy(update={"run": run, "quant": quant}), epochs)

    def _learn(self, config: RunConfig, epochs: float) -> Learned:
        stage = build_whole(config, self._source.shape, find_task(self._source.task))
        sampler, end = Sampler(len(self._source.train), config.run.seed), budget(epochs, len(self._source.train))
        began = time.thread_time()
        for step, begin in enumerate(range(0, end, config.data.batch), 1):
            indices = sampler.indices(begin, min(begin + config.data.batch, end))
            self._step(stage, step, to_tensors(self._source.train.batch(indices)), config.data.microbatches)
        return Learned(self._look(stage), time.thread_time() - began)

    def _step(self, stage: Stage, step: int, batch: dict[str, torch.Tensor], microbatches: int) -> None:
        samples = len(batch["inputs"])
        for index, part in enumerate(split(samples, min(microbatches, samples))):
            targets = {name: tensor[part.start : part.stop] for name, tensor in batch.items()}
            stage.loss(MicrobatchId(step, index), targets.pop("inputs"), targets, samples)
        stage.commit(step)

    def _look(self, stage: Stage) -> float:
        right = samples = 0.0
        for arrays in evaluation_batches(self._source.held_out, EVALUATION_BATCH):
            targets = to_tensors(arrays)
            inputs = targets.pop("inputs")
            sums = stage.loss(MicrobatchId(stage.version + 1, 0), inputs, targets, len(inputs), train=False).sums
            right, samples = right + sums["correct"], samples + sums["samples"]
        return right / samples


@asynccontextmanager
async def open_learner() -> AsyncIterator[Learner]:
    """On one thread."""
    torch.set_num_threads(1)
    config = load(CONFIG).run_config()
    yield Learner(config, await asyncio.to_thread(open_source, config))
