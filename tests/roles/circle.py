"""Siblings that average with each other at once and in memory: the averager's part, as a seat sees it, without peers.

What a round comes to is worked out in the plainest way. The test says how long it takes, and what goes wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from distqat.averaging import outer
from distqat.averaging.averager import Outcome
from distqat.averaging.committed import Receipt
from distqat.averaging.feedback import Feedback
from distqat.averaging.outer import OuterState
from distqat.averaging.phases import Phase, phase
from distqat.averaging.spans import Shape
from distqat.errors import RoundError
from distqat.ids import PeerId, StepRef
from distqat.model.fragments import Fragment
from distqat.roles.journal import Journal
from distqat.roles.rounds import Rounds
from distqat.sections import SyncSection
from distqat.telemetry import Telemetry
from tests.averaging import naive

T = TypeVar("T")


class Inline:
    """A device that works at once."""

    async def run(self, work: Callable[[], T], *priority: object) -> T:
        return work()


class Numbers:
    """A stage of so many numbers in each fragment, of which the last is a running statistic."""

    name, index = "fake/0", 0

    def __init__(self, fragments: int = 1, size: int = 3) -> None:
        self.values = torch.zeros(fragments, size)
        self.fragments = tuple(Fragment((index,), size - 1, size) for index in range(fragments))

    def gather(self, fragments: Sequence[int]) -> Tensor:
        return self.values[list(fragments)].reshape(-1).clone()

    def scatter(self, fragments: Sequence[int], vector: Tensor) -> None:
        self.values[list(fragments)] = vector.view(len(fragments), -1)

    def learn(self, by: float) -> None:
        """A step moves all numbers."""
        self.values += by


class Averaging:
    """One sibling's averager."""

    def __init__(self, circle: Circle, name: str, shapes: Sequence[Shape]) -> None:
        self.circle = circle
        self.me = PeerId(name)
        self.outer: OuterState | None = None
        self.receipts: list[Receipt] = []
        self.given: list[tuple[tuple[int, ...], list[float], int]] = []  # Fragments, local values, samples; each round.
        self.committed = SimpleNamespace(feedback=Feedback())
        self.context: Any = SimpleNamespace(shapes=tuple(shapes), sync=circle.sync, ready=self.others)

    def others(self) -> dict[PeerId, Any]:
        return {name: None for name in self.circle.averagers if name != self.me}

    @property
    def phase(self) -> Phase | None:
        return phase(self.outer.round, self.circle.sync) if self.outer is not None else None

    @property
    def invited(self) -> bool:
        """Who takes part in a round is, until it has come: it was rung, or the others wait for it where it leads."""
        return any(peer != self.me for peer in self.circle.joined)

    async def wait_invited(self) -> None:
        async with self.circle.changed:
            await self.circle.changed.wait_for(lambda: self.invited)

    def is_due(self, steps: int) -> bool:
        how = self.phase
        return how is not None and (self.invited or steps >= how.steps)

    async def synchronise(self, local: Tensor, samples: int, origins: tuple[StepRef, ...] = ()) -> Outcome:
        assert self.outer is not None
        how = self.phase
        assert how is not None
        self.given.append((how.fragments, local.tolist(), samples))
        return await self.circle.meet(self, local, samples)


@dataclass
class _Joined:
    local: Tensor
    samples: int
    done: asyncio.Future[Outcome]


class Circle:
    """All siblings; a round takes `seconds` from when the last has joined."""

    def __init__(self, sync: SyncSection, seconds: float = 0.01) -> None:
        self.sync = sync
        self.seconds = seconds
        self.faults: list[str] = []  # Reasons for which the next rounds fail, one each.
        self.averagers: dict[PeerId, Averaging] = {}
        self.joined: dict[PeerId, _Joined] = {}
        self.changed = asyncio.Condition()  # Notified when somebody joins.

    async def meet(self, averaging: Averaging, local: Tensor, samples: int) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        async with self.changed:
            self.joined[averaging.me] = _Joined(local, samples, future)
            self.changed.notify_all()
        if len(self.joined) == len(self.averagers):
            await asyncio.sleep(self.seconds)
            self._conclude()
        return await future

    def _conclude(self) -> None:
        joined, self.joined = dict(sorted(self.joined.items())), {}
        if self.faults:
            reason = self.faults.pop(0)
            for one in joined.values():
                one.done.set_exception(RoundError(reason))
            return
        before = {self.averagers[peer].outer for peer in joined}
        state = next(iter(self.averagers.values())).outer
        assert state is not None
        assert {one.digest for one in before if one is not None} == {state.digest}
        self._commit(state, joined)

    def _commit(self, state: OuterState, joined: dict[PeerId, _Joined]) -> None:
        how = phase(state.round, self.sync)
        contributors = {peer: one for peer, one in joined.items() if one.samples}
        total = sum(one.samples for one in contributors.values())
        after, receipt = state, None
        if contributors:
            after = outer.apply(state, average(state, how, contributors.values(), total), how)
            receipt = Receipt(state.round, tuple(contributors), total, 10, 0.1, after.digest, (), how.fragments)
        for peer, one in joined.items():
            averaging = self.averagers[peer]
            averaging.outer = after
            averaging.receipts += [receipt] if receipt is not None else []
            one.done.set_result(Outcome(state, after, how, receipt))


def average(state: OuterState, how: Phase, contributors: Any, total: int) -> Tensor:
    """The weighted mean, one product and one sum after the other."""
    mean: Tensor | None = None
    for one in contributors:
        part = naive.delta(state, one.local, how) * torch.tensor(one.samples / total, dtype=torch.float32)
        mean = part if mean is None else mean + part
    assert mean is not None
    return mean


class Sibling:
    """A stage with its rounds, and steps that are taken by hand."""

    def __init__(self, circle: Circle, name: str, stage: Any) -> None:
        shapes = [Shape(held.num_parameters, held.num_elements) for held in stage.fragments]
        self.stage = stage
        self.device = Inline()
        self.averager = circle.averagers[PeerId(name)] = Averaging(circle, name, shapes)
        self.averager.outer = OuterState.founding(stage.gather(range(len(shapes))), shapes)
        self.telemetry = Telemetry()
        self.is_idle = False
        held: list[Any] = [stage, self.device, self.averager, Journal(self.telemetry, "fake/0"), lambda: self.is_idle]
        self.rounds = Rounds(*held)

    @property
    def committed(self) -> OuterState:
        assert self.averager.outer is not None
        return self.averager.outer

    async def step(self, by: float, samples: int = 8, seconds: float = 1.0) -> None:
        """Wait for the gate, take a step that lasts so long and moves all numbers, and let what is due be done."""
        await self.rounds.opened()
        await asyncio.sleep(seconds)
        self.stage.learn(by)
        self.rounds.count(samples)
        await self.rounds.boundary()


@asynccontextmanager
async def working(*siblings: Sibling) -> AsyncIterator[None]:
    """Within, they take their rounds."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(sibling.rounds.work()) for sibling in siblings]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
