"""What a boundary costs that is trained to be sent in few bits: bytes and learning, beside int8 blocks and none.

The models of `configs/digits.yaml` and `configs/pydocs.yaml`. All runs of a seed begin with the same numbers and see
the same samples and the same dropout. The stages stand in one process; between them every tensor is encoded and
decoded as on a hop. Gradients go back as int8 blocks but in the exact run, so forms differ by what carries activations.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.case import Better, Case, Goal, Line
from bench.workers import open_worker
from distqat.config import RunConfig, load
from distqat.data.sampler import Sampler
from distqat.data.sources import Source, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.build import build_stage, stage_names
from distqat.model.stage import Stage
from distqat.pipeline.hop_codecs import HopCodecs, codecs_of
from distqat.pipeline.split import split
from distqat.roles.trials import to_tensors
from distqat.wire import tensors
from distqat.wire.tensors import Sent
from distqat.wire_sections import WireSection

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXACT, BLOCKS = "none", "int8 blocks"


def _learned(bits: int, signed: bool) -> dict[str, Any]:
    return {"activations": "learned", "gradients": "int8", "learned": {"bits": bits, "signed": signed}}


def _forms(signed: bool) -> dict[str, dict[str, Any]]:
    blocks = {"activations": "int8", "gradients": "int8"}
    return {EXACT: {}, BLOCKS: blocks, **{f"learned, {bits} bits": _learned(bits, signed) for bits in (8, 4, 2)}}


@dataclass(frozen=True)
class Trial:
    """What is trained."""

    name: str
    signed: bool
    """Whether what crosses the boundary has a sign; behind a relu it has none."""
    seeds: tuple[int, ...]
    steps: int
    held_out: int
    """Samples that are looked at, at most."""
    metric: str
    unit: str
    is_share: bool
    """Of the samples, in percent; else a mean loss."""


DIGITS = Trial("digits", False, (1, 2, 3), 180, 1 << 30, "correct", "%", True)
PYDOCS = Trial("pydocs", True, (1,), 80, 256, "loss", "nats/byte", False)
QUICK_STEPS = 12
WITHIN = {"learned, 8 bits": 1.0, "learned, 4 bits": 1.0}
"""Percent that a form may be worse by than int8 blocks."""


@dataclass(frozen=True)
class Learned:
    """What one training has come to."""

    value: float
    """On held-out samples."""
    bytes: float
    """Of activations, for a sample and all boundaries, in training."""


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Both trials, two trainings side by side."""
    for trial in (DIGITS, PYDOCS):
        steps, forms = QUICK_STEPS if quick else trial.steps, _forms(trial.signed)
        found: dict[str, list[Learned]] = {form: [] for form in forms}
        open_one = partial(open_learner, trial.name)
        async with open_worker("even", open_one) as even, open_worker("odd", open_one) as odd:
            pairs = [(form, seed) for form in forms for seed in trial.seeds]
            asked = zip((even, odd), (pairs[::2], pairs[1::2]), strict=True)
            for part in await asyncio.gather(*(_ask(worker, trial, steps, way) for worker, way in asked)):
                for form, learned in part:
                    found[form].append(learned)
        for line in lines(trial, found, steps):
            yield line


async def _ask(worker: Any, trial: Trial, steps: int, way: Sequence[tuple[str, int]]) -> list[tuple[str, Learned]]:
    return [(form, await worker.ask("learn", trial, form, seed, steps)) for form, seed in way]


def lines(trial: Trial, found: Mapping[str, Sequence[Learned]], steps: int) -> Iterator[Line]:
    """From what each form has learned, one for each seed."""
    name = f"{trial.name}, {len(trial.seeds)} seeds, {steps} steps"
    blocks = found[BLOCKS]
    for form, own in found.items():
        case = Case("boundary", f"{name}, {form}: activations", "B/sample", "lower", BLOCKS)
        yield case.line([one.bytes for one in own], [one.bytes for one in blocks])
        goal = None
        if form in WITHIN and steps == trial.steps:
            goal = Goal("ratio", 1 - WITHIN[form] / 100)
        better: Better = "higher" if trial.is_share else "lower"
        case = Case("boundary", f"{name}, {form}: held out", trial.unit, better, BLOCKS, goal)
        yield case.line([one.value for one in own], [one.value for one in blocks])


class Learner:
    """Trains the model again and again."""

    def __init__(self, config: RunConfig, source: Source) -> None:
        self._config = config
        self._source = source
        self._bytes = 0  # Of the activations of one training.

    async def learn(self, trial: Trial, form: str, seed: int, steps: int) -> Learned:
        """So many steps, and a look at the held-out samples."""
        wire = WireSection.model_validate(_forms(trial.signed)[form])
        run = self._config.run.model_copy(update={"seed": seed})
        return self._learn(self._config.model_copy(update={"run": run, "wire": wire}), trial, steps)

    def _learn(self, config: RunConfig, trial: Trial, steps: int) -> Learned:
        names = stage_names(config, self._source.shape)
        task = find_task(self._source.task)
        stages = [build_stage(config, self._source.shape, index, task) for index in range(len(names))]
        hops = [codecs_of(config.wire, names, index) for index in range(1, len(names))]
        sampler, size = Sampler(len(self._source.train), config.run.seed), config.data.batch
        self._bytes = 0
        for step in range(1, steps + 1):
            batch = to_tensors(self._source.train.batch(sampler.indices((step - 1) * size, step * size)))
            self._step(stages, hops, step, batch)
        trained = self._bytes / (steps * size)
        return Learned(self._look(stages, hops, trial), trained)

    def _step(self, stages: list[Stage], hops: list[HopCodecs], step: int, batch: dict[str, torch.Tensor]) -> None:
        samples = len(batch["inputs"])
        for index, part in enumerate(split(samples, self._config.data.microbatches)):
            id = MicrobatchId(step, index)
            targets = {name: tensor[part.start : part.stop] for name, tensor in batch.items()}
            hidden = self._down(stages, hops, id, targets.pop("inputs"), train=True)
            gradient = stages[-1].loss(id, hidden, targets, samples).gradient
            for stage, hop in zip(reversed(stages[:-1]), reversed(hops), strict=True):
                assert gradient is not None
                gradient = stage.backward(id, _across(gradient, hop.gradients)[0])
        for stage in stages:
            stage.commit(step)

    def _look(self, stages: list[Stage], hops: list[HopCodecs], trial: Trial) -> float:
        held_out = self._source.held_out
        targets = to_tensors(held_out.batch(np.arange(min(len(held_out), trial.held_out))))
        id = MicrobatchId(stages[0].version + 1, 0)
        hidden = self._down(stages, hops, id, targets.pop("inputs"), train=False)
        sums = stages[-1].loss(id, hidden, targets, len(hidden), train=False).sums
        return sums[trial.metric] / len(hidden) * (100 if trial.is_share else 1)

    def _down(
        self, stages: list[Stage], hops: list[HopCodecs], id: MicrobatchId, hidden: torch.Tensor, train: bool
    ) -> torch.Tensor:
        for stage, hop in zip(stages[:-1], hops, strict=True):
            hidden, size = _across(stage.send(id, hidden, train), hop.activations)
            self._bytes += size
        return hidden


def _across(sent: Sent, codec: str) -> tuple[torch.Tensor, int]:
    """What comes out of a hop, and how many bytes went in."""
    headers, payload = tensors.encode({"hidden": sent}, codec)
    return tensors.decode(headers, memoryview(bytes(payload)))["hidden"], len(payload)


@asynccontextmanager
async def open_learner(name: str) -> AsyncIterator[Learner]:
    """On one thread."""
    torch.set_num_threads(1)
    config = load(CONFIGS / f"{name}.yaml").run_config()
    yield Learner(config, await asyncio.to_thread(open_source, config))
