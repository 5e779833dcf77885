"""What a newcomer's cold inner optimizer costs, and what helps: held-out loss of the outer parameters after a join.

Two siblings train a small language model on `pydocs` by the outer algebra of the project. Then one of them is replaced
by a newcomer with the committed state and another optimizer state, and both go on for a few rounds, on the same samples
in every case. The peer of each case is the run in which nobody was replaced. Half of the swarm is new: a harder case
than a join usually is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.case import Case, Line
from bench.workers import open_worker
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
from distqat.model.build import build_whole
from distqat.model.stage import Stage
from distqat.roles.trials import to_tensors
from distqat.sections import DataSection, ModelSection, OptimizerSection, RunSection, SyncSection

SEEDS = (1, 2, 3)
SIBLINGS = 2
SYNC = SyncSection(warmup_steps=60, inner_steps=20, outer_learning_rate=0.6, outer_momentum=0.9)


@dataclass(frozen=True)
class Remedy:
    """How a newcomer begins."""

    moments: bool = False
    """With a copy of its sibling's inner optimizer state."""
    ramp: int = 0
    """Steps over which its learning rate grows to its value."""
    silent: int = 0
    """Rounds in which it weighs nothing."""


REMEDIES: Mapping[str, Remedy] = {
    "cold": Remedy(),
    "sibling's moments": Remedy(moments=True),
    "learning rate grows over 10 steps": Remedy(ramp=10),
    "no weight in the first round": Remedy(silent=1),
}


@dataclass(frozen=True)
class Plan:
    """When it joins, and how long the run is watched."""

    name: str
    join: int
    """Rounds before it."""
    looks: tuple[int, ...]
    """Rounds after the join at which the loss is taken."""


PLANS = (Plan("in the warm-up", 30, (1, 2, 5, 10)), Plan("after it", 80, (1, 2, 3, 4)))
QUICK = (Plan("after it", 61, (1, 2)),)
HELD_OUT = 256


async def bench(quick: bool) -> AsyncIterator[Line]:
    """The mean loss over the looks, and that of the last, for each remedy."""
    plans, seeds = (QUICK, SEEDS[:1]) if quick else (PLANS, SEEDS)
    async with open_worker("newcomer", open_course) as worker:
        for plan in plans:
            found = [await worker.ask("losses", seed, plan) for seed in seeds]
            for line in lines(plan, found):
                yield line


def lines(plan: Plan, found: Sequence[Mapping[str, Sequence[float]]]) -> list[Line]:
    """From the losses of each seed by remedy; `stays` is the run without a join."""
    result = []
    for name in REMEDIES:
        for what, pick in (("mean", np.mean), ("last", lambda losses: losses[-1])):
            rounds = (
                f"{what} of rounds {', '.join(map(str, plan.looks))}" if what == "mean" else f"round {plan.looks[-1]}"
            )
            ours, peers = ([float(pick(seed[key])) for seed in found] for key in (name, "stays"))
            case = f"join {plan.name}, {name}, held-out loss, {rounds}"
            result.append(Case("newcomer", case, "nats/byte", "lower", "nobody joins").line(ours, peers))
    return result


class Course:
    """Trains two siblings, and replaces one."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __repr__(self) -> str:
        return f"<Course on {self._source.name}>"

    async def losses(self, seed: int, plan: Plan) -> dict[str, list[float]]:
        """After the looked-at rounds from the join on, by remedy."""
        pair = Pair(self._source, seed)
        while pair.state.round < plan.join:
            pair.advance()
        before = pair.save()
        result: dict[str, list[float]] = {}
        for name, remedy in {"stays": None, **REMEDIES}.items():
            pair.load(before)
            if remedy is not None:
                pair.replace_last(remedy)
            result[name] = []
            while pair.state.round < plan.join + plan.looks[-1]:
                pair.advance()
                if pair.state.round - plan.join in plan.looks:
                    result[name].append(pair.look())
        return result


@dataclass(frozen=True)
class Saved:
    """Everything at one moment, between two rounds."""

    state: OuterState
    optimizers: tuple[dict[str, Tensor], ...]
    begin: int


class Pair:
    """The siblings, between two rounds."""

    def __init__(self, source: Source, seed: int) -> None:
        config = _config(seed)
        self._source = source
        self._batch = config.data.batch
        self._sampler = Sampler(len(source.train), seed)
        self._stages = [build_whole(config, source.shape, find_task(source.task)) for _ in range(SIBLINGS)]
        self._training = self._stages[0].training
        self._begin = 0  # Samples that were drawn.
        self._remedy: Remedy | None = None
        self._age = 0  # Steps of the newcomer.
        self._rounds = 0  # Rounds since it joined.
        shape = Shape(self._stages[0].num_parameters, self._stages[0].num_elements)
        self.state = OuterState.founding(self._stages[0].flatten(), [shape])

    def __repr__(self) -> str:
        return f"<Pair {self.state!r}>"

    def save(self) -> Saved:
        """To go back to."""
        states = [stage.optimizer.state() for stage in self._stages]
        copies = tuple({name: tensor.clone() for name, tensor in state.items()} for state in states)
        return Saved(self.state, copies, self._begin)

    def load(self, saved: Saved) -> None:
        """Go back; nobody is new."""
        self.state, self._begin, self._remedy = saved.state, saved.begin, None
        for stage, state in zip(self._stages, saved.optimizers, strict=True):
            stage.scatter([0], self.state.anchor)
            _fill(stage, state)

    def replace_last(self, remedy: Remedy) -> None:
        """The last sibling is a newcomer from here on."""
        self._remedy, self._age, self._rounds = remedy, 0, 0
        donor = self._stages[0].optimizer.state()
        cold = {name: torch.zeros_like(tensor) for name, tensor in donor.items()}
        _fill(self._stages[-1], donor if remedy.moments else cold)

    def advance(self) -> None:
        """One round, with the steps before it."""
        how = phase(self.state.round, SYNC)
        for _ in range(how.steps):
            for stage in self._stages:
                self._step(stage)
        is_silent = self._remedy is not None and self._rounds < self._remedy.silent
        heard = self._stages[:-1] if is_silent else self._stages
        mean = torch.stack([self._contribution(stage, how) for stage in heard]).mean(dim=0)
        self.state = outer.apply(self.state, mean, how)
        self._rounds += 1
        for stage in self._stages:
            stage.scatter([0], self.state.anchor)

    def look(self) -> float:
        """Mean held-out loss of the outer parameters."""
        stage, targets = self._stages[0], to_tensors(self._source.held_out.batch(np.arange(HELD_OUT)))
        inputs = targets.pop("inputs")
        stage.scatter([0], self.state.anchor)
        id = MicrobatchId(stage.version + 1, 0)
        return stage.loss(id, inputs, targets, HELD_OUT, train=False).sums["loss"] / HELD_OUT

    def _contribution(self, stage: Stage, how: Phase) -> Tensor:
        """As it travels with codec `none` [num_elements]."""
        contribution = Contribution.of(self.state, stage.flatten(), how, Feedback(0.0))
        values = np.empty(contribution.elements, np.float32)
        contribution.read(0, values, is_exact=True)
        return torch.from_numpy(values)

    def _step(self, stage: Stage) -> None:
        stage.training = self._training
        if stage is self._stages[-1] and self._remedy is not None:
            self._age += 1
            share = min(1.0, self._age / self._remedy.ramp) if self._remedy.ramp else 1.0
            rate = self._training.optimizer.learning_rate * share
            section = self._training.optimizer.model_copy(update={"learning_rate": rate})
            stage.training = replace(self._training, optimizer=section)
        indices = self._sampler.indices(self._begin, self._begin + self._batch)
        self._begin += self._batch
        batch, step = to_tensors(self._source.train.batch(indices)), stage.version + 1
        stage.loss(MicrobatchId(step, 0), batch.pop("inputs"), batch, self._batch)
        stage.commit(step)


def _config(seed: int) -> RunConfig:
    return RunConfig(
        run=RunSection(name="newcomer", seed=seed),
        model=ModelSection(name="gpt", stages=1, options={"layers": 2, "width": 64, "heads": 4, "dropout": 0.0}),
        data=DataSection(source="pydocs", sequence=64, batch=16, microbatches=1),
        optimizer=OptimizerSection(name="adamw", learning_rate=2e-3),
        sync=SYNC,
    )


def _fill(stage: Stage, state: Mapping[str, Tensor]) -> None:
    for name, tensor in stage.optimizer.state().items():
        tensor.copy_(state[name])


@asynccontextmanager
async def open_course() -> AsyncIterator[Course]:
    """On one thread."""
    torch.set_num_threads(1)
    yield Course(await asyncio.to_thread(partial(open_source, _config(0))))
