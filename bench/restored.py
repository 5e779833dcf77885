"""With what a stage goes on after its expert was killed: what each choice costs in loss, on the same samples.

Two pipelines of two stages train by the outer algebra of the project. In mid-round the expert of one stage of one of
them is replaced, and both go on. Nothing else is disturbed, and the peer of every case is the run in which nobody was
killed. The stage that is killed is the first in half of the cases, and the last in the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from bench.case import Case, Line
from distqat.averaging import outer
from distqat.averaging.contribution import Contribution
from distqat.averaging.feedback import Feedback
from distqat.averaging.outer import OuterState
from distqat.averaging.phases import Phase, phase
from distqat.averaging.spans import Shape
from distqat.config import RunConfig
from distqat.data.sampler import Sampler
from distqat.data.sources import Source, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.build import build_stage
from distqat.model.local import OPTIMIZER, LocalState
from distqat.model.stage import Stage
from distqat.roles.trials import to_tensors
from distqat.sections import DataSection, ModelSection, OptimizerSection, RunSection, SyncSection

PIPELINES = 2
STAGES = 2
SYNC = SyncSection(warmup_steps=40, inner_steps=30, outer_learning_rate=0.6, outer_momentum=0.9)
SETTLED = 3
"""Rounds after the warm-up and before the kill."""
OFFSETS = (8, 24)
"""Steps since the last round at which an expert is killed."""
AFTER = 10
"""Steps after the kill whose training loss counts."""
ROUNDS = 2
"""Rounds after which the held-out loss of what is committed counts."""
HELD_OUT = 256
OLDEST = 20


@dataclass(frozen=True)
class Choice:
    """With what the stage goes on."""

    values: str = "anchor"
    """Those of the anchor, of a copy, or of the sibling at that moment."""
    age: int = 0
    """Of the copy, in steps."""
    moments: bool = False
    """With the optimizer state of the copy, or of the sibling; else it begins anew."""


CHOICES: Mapping[str, Choice] = {
    "anchor": Choice(),
    "anchor, moments of 5 steps ago": Choice(age=5, moments=True),
    "anchor, sibling's moments": Choice(values="anchor of sibling", moments=True),
    "copy": Choice("copy", 0, True),
    "copy of 5 steps ago": Choice("copy", 5, True),
    "copy of 20 steps ago": Choice("copy", 20, True),
    "copy, no moments": Choice("copy", 0),
    "copy of 5 steps ago, no moments": Choice("copy", 5),
    "copy of 20 steps ago, no moments": Choice("copy", 20),
    "sibling's values": Choice("sibling", 0, True),
    "sibling's values, no moments": Choice("sibling"),
}
"""A copy that is older than the last round gives its moments only; its values are in the anchor."""

Losses = Mapping[str, Sequence[tuple[float, float]]]
"""By choice: mean training loss of the steps after each kill, and held-out loss of the anchors some rounds later."""


def config(source: str, seed: int) -> RunConfig:
    """A small model on that source."""
    model = (
        ModelSection(name="gpt", stages=STAGES, options={"layers": 2, "width": 64, "heads": 4, "dropout": 0.0})
        if source == "pydocs"
        else ModelSection(name="mlp", stages=STAGES)
    )
    return RunConfig(
        run=RunSection(name="failover", seed=seed),
        model=model,
        data=DataSection(source=source, sequence=64, batch=16, microbatches=1),
        optimizer=OptimizerSection(name="adamw", learning_rate=2e-3),
        sync=SYNC,
    )


def lines(source: str, found: Sequence[Losses]) -> list[Line]:
    """From the losses of each seed; `nobody` is the run without a kill."""
    result = []
    for name in CHOICES:
        for place, what in enumerate((f"loss of {AFTER} steps after a kill", f"held-out loss {ROUNDS} rounds later")):
            ours, peers = ([pair[place] for seed in found for pair in seed[key]] for key in (name, "nobody"))
            case = Case("failover", f"{source}, {name}, {what}", "nats", "lower", "nobody is killed")
            # Pairs of the same seed and moment: their mean difference is what a kill costs.
            peer = fmean(peers)
            result.append(case.line([peer + fmean(a - b for a, b in zip(ours, peers, strict=True))], [peer]))
    return result


class Course:
    """Kills and restores."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __repr__(self) -> str:
        return f"<Course on {self._source.name}>"

    async def losses(self, seed: int) -> Losses:
        """Of one seed, with a kill of each stage at each moment."""
        swarm = Swarm(self._source, config(self._source.name, seed))
        while swarm.rounds < SYNC.warmup_steps + SETTLED:
            swarm.advance()
        before = swarm.save()
        result: dict[str, list[tuple[float, float]]] = {name: [] for name in ("nobody", *CHOICES)}
        for offset in OFFSETS:
            for stage in range(STAGES):
                for name, choice in {"nobody": None, **CHOICES}.items():
                    swarm.load(before)
                    result[name].append(swarm.kill(stage, offset, choice))
        return result


@dataclass(frozen=True)
class Saved:
    """Everything at one moment, between two rounds."""

    states: tuple[OuterState, ...]
    locals: tuple[tuple[LocalState, ...], ...]
    begin: int


class Swarm:
    """Pipelines and their rounds, in one process."""

    def __init__(self, source: Source, run: RunConfig) -> None:
        self._source = source
        self._batch = run.data.batch
        self._sampler = Sampler(len(source.train), run.run.seed)
        task = find_task(source.task)
        self.pipelines = [
            [build_stage(run, source.shape, index, task) for index in range(STAGES)] for _ in range(PIPELINES)
        ]
        self._begin = 0  # Samples that were drawn.
        self._steps = 0  # Since the last round.
        self._samples = [[0] * STAGES for _ in range(PIPELINES)]  # That local values stand for.
        self.states = [
            OuterState.founding(stage.flatten(), [Shape(stage.num_parameters, stage.num_elements)])
            for stage in self.pipelines[0]
        ]

    def __repr__(self) -> str:
        return f"<Swarm round {self.rounds}>"

    @property
    def rounds(self) -> int:
        """That are committed."""
        return self.states[0].round

    def save(self) -> Saved:
        """To go back to."""
        held = tuple(tuple(stage.local_state() for stage in pipeline) for pipeline in self.pipelines)
        return Saved(tuple(self.states), held, self._begin)

    def load(self, saved: Saved) -> None:
        """Go back to a moment after a round."""
        self.states, self._begin, self._steps = list(saved.states), saved.begin, 0
        self._samples = [[0] * STAGES for _ in range(PIPELINES)]
        for pipeline, states in zip(self.pipelines, saved.locals, strict=True):
            for stage, state in zip(pipeline, states, strict=True):
                stage.restore(state)

    def advance(self) -> None:
        """To the end of the round."""
        while self._steps < phase(self.rounds, SYNC).steps:
            self.step()
        self.synchronise()

    def kill(self, index: int, offset: int, choice: Choice | None) -> tuple[float, float]:
        """The losses after that stage of the last pipeline was killed so many steps after the last round."""
        victim, copies = self.pipelines[-1][index], deque[LocalState](maxlen=OLDEST + 1)
        # What it held at the end of the round before: older copies have the same moments, as good as any.
        copies.append(victim.local_state())
        for _ in range(offset):
            self.step()
            copies.append(victim.local_state())
        if choice is not None:
            self.restore(index, choice, list(copies), offset)
        until = self.rounds + ROUNDS
        losses = [self._step_or_round() for _ in range(AFTER)]
        while self.rounds < until:
            self.advance()
        return fmean(losses), self.look()

    def restore(self, index: int, choice: Choice, copies: Sequence[LocalState], steps: int) -> None:
        """The stage goes on with something else than what it held; `copies` are those since the last round."""
        stage, sibling = self.pipelines[-1][index], self.pipelines[0][index]
        is_sibling = "sibling" in choice.values
        age = min(choice.age, len(copies) - 1)
        donor = sibling.local_state() if is_sibling else copies[-1 - age]
        cold = {name: torch.zeros_like(t) for name, t in donor.tensors.items() if name.startswith(OPTIMIZER)}
        tensors = dict(donor.tensors) if choice.moments else {**donor.tensors, **cold}
        stage.restore(LocalState(stage.version, tensors))
        is_older = choice.values == "copy" and choice.age > steps
        kept = 0
        if choice.values.startswith("anchor") or is_older:
            stage.scatter([0], self.states[index].anchor)
        elif choice.values == "copy":
            kept = (steps - age) * self._batch
        # A sibling's values are in its own contribution.
        self._samples[-1][index] = kept

    def step(self) -> float:
        """One of each pipeline; the training loss of the last one."""
        loss = 0.0
        for number, pipeline in enumerate(self.pipelines):
            indices = self._sampler.indices(self._begin, self._begin + self._batch)
            self._begin += self._batch
            batch = to_tensors(self._source.train.batch(indices))
            loss = self._train(pipeline, batch) / self._batch
            self._samples[number] = [held + self._batch for held in self._samples[number]]
        self._steps += 1
        return loss

    def synchronise(self) -> None:
        """A round of all stages."""
        how = phase(self.rounds, SYNC)
        for index in range(STAGES):
            siblings = [pipeline[index] for pipeline in self.pipelines]
            weights = torch.tensor([float(samples[index]) for samples in self._samples])
            parts = torch.stack([self._contribution(stage, index, how) for stage in siblings])
            mean = (parts * (weights / weights.sum())[:, None]).sum(dim=0)
            self.states[index] = outer.apply(self.states[index], mean, how)
            for stage in siblings:
                stage.scatter([0], self.states[index].anchor)
        self._samples = [[0] * STAGES for _ in range(PIPELINES)]
        self._steps = 0

    def look(self) -> float:
        """Mean held-out loss of what is committed."""
        targets = to_tensors(self._source.held_out.batch(np.arange(HELD_OUT)))
        hidden, pipeline = targets.pop("inputs"), self.pipelines[0]
        count = hidden.shape[0]
        for stage in pipeline[:-1]:
            hidden = stage.forward(MicrobatchId(stage.version + 1, 0), hidden, train=False)
        last = pipeline[-1]
        return last.loss(MicrobatchId(last.version + 1, 0), hidden, targets, count, train=False).sums["loss"] / count

    def _step_or_round(self) -> float:
        loss = self.step()
        if self._steps == phase(self.rounds, SYNC).steps:
            self.synchronise()
        return loss

    def _train(self, pipeline: Sequence[Stage], batch: dict[str, Tensor]) -> float:
        hidden = batch.pop("inputs")
        for stage in pipeline[:-1]:
            hidden = stage.forward(MicrobatchId(stage.version + 1, 0), hidden)
        last = pipeline[-1]
        result = last.loss(MicrobatchId(last.version + 1, 0), hidden, batch, self._batch)
        gradient = result.gradient
        for stage in reversed(pipeline[:-1]):
            assert gradient is not None
            gradient = stage.backward(MicrobatchId(stage.version + 1, 0), gradient)
        for stage in pipeline:
            stage.commit(stage.version + 1)
        return result.sums["loss"]

    def _contribution(self, stage: Stage, index: int, how: Phase) -> Tensor:
        """As it travels with codec `none` [num_elements]."""
        contribution = Contribution.of(self.states[index], stage.flatten(), how, Feedback(0.0))
        values = np.empty(contribution.elements, np.float32)
        contribution.read(0, values, is_exact=True)
        return torch.from_numpy(values)


@asynccontextmanager
async def open_course(source: str) -> AsyncIterator[Course]:
    """On one thread."""
    torch.set_num_threads(1)
    yield Course(await asyncio.to_thread(partial(open_source, config(source, 0))))
