"""How a stage gets its state: from siblings, from fresh numbers, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from distqat.averaging.context import Sibling
from distqat.discovery.records import ExpertRecord
from distqat.discovery.view import Entry, Snapshot
from distqat.errors import StateError
from distqat.ids import Endpoint, PeerId, RunId
from distqat.roles.history import History
from distqat.roles.newcomer import Newcomer
from distqat.rpc.transport import Bytes
from distqat.telemetry import Reason, Telemetry, log
from tests.support import run_virtual

T = TypeVar("T")

RUN = RunId("run", "ab" * 16)
HERE = Endpoint("alice", 1)


class FakeStage:
    """Two fragments of one number each."""

    name, fragments = "fake/1", (0, 1)

    def __init__(self) -> None:
        self.values = torch.tensor([1.0, 2.0])

    def gather(self, fragments: range) -> torch.Tensor:
        return self.values[list(fragments)].clone()

    def scatter(self, fragments: range, vector: torch.Tensor) -> None:
        self.values[list(fragments)] = vector


class FakeDevice:
    async def run(self, work: Callable[[], T]) -> T:
        return work()


@dataclass
class FakeAverager:
    """Catches up to tens, after so many failures."""

    failures: int = 0
    founded: list[list[float]] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)

    async def found(self, local: torch.Tensor) -> None:
        self.founded.append(local.tolist())

    async def catch_up(self, donors: list[Sibling]) -> Any:
        self.asked.append([donor.peer for donor in donors])
        if len(self.asked) <= self.failures:
            raise StateError("no donor of stage 1 (bob: it broke)")
        return SimpleNamespace(round=7, parts=(0, 1), anchor=torch.tensor([10.0, 20.0]))


class World:
    """What the newcomer sees."""

    def __init__(self) -> None:
        self.stage, self.averager = FakeStage(), FakeAverager()
        self.experts: dict[PeerId, Entry[ExpertRecord]] = {}
        self.reason = Reason(log, "")
        self.telemetry = Telemetry()
        self.received = 100
        self.is_synced = asyncio.Event()
        self.is_synced.set()
        context: Any = SimpleNamespace(
            directory=SimpleNamespace(wait_synced=self.is_synced.wait, snapshot=self.snapshot),
            run=SimpleNamespace(config=SimpleNamespace(id=RUN)),
            history=History(),
            resumes=False,
            telemetry=self.telemetry,
            transport=SimpleNamespace(traffic=lambda: {"state": Bytes(0, self.received)}),
        )
        self.loaded: int | StateError | None = None  # What the client wants to be loaded.
        given: list[Any] = [context, self.stage, FakeDevice(), self.averager, self.siblings, self.reason, self.load]
        self.newcomer = Newcomer(*given)

    async def load(self) -> int | None:
        if isinstance(self.loaded, StateError):
            raise self.loaded
        return self.loaded

    def snapshot(self) -> Snapshot:
        return Snapshot(run=RUN, experts=self.experts)

    def siblings(self) -> list[Sibling]:
        return [
            Sibling(peer, HERE, entry.record.round, entry.record.digest, entry.record.ready)
            for peer, entry in self.experts.items()
            if entry.record.stage == 1
        ]

    def add(self, name: str, stage: int, number: int, ready: bool = True) -> None:
        peer = PeerId(name)
        self.experts[peer] = Entry(peer, 1, ExpertRecord(HERE, True, stage, ready, round=number))  # type: ignore[arg-type]


def test_a_run_without_a_past_begins_from_fresh_numbers_once_the_swarm_was_asked() -> None:
    async def scenario() -> None:
        world = World()
        world.is_synced.clear()
        world.add("bob", stage=1, number=0)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(world.newcomer.get_state())
            await asyncio.sleep(5.0)
            assert not world.averager.founded
            world.is_synced.set()
            await task
        assert world.averager.founded == [[1.0, 2.0]]
        assert not world.averager.asked

    run_virtual(scenario())


def test_the_state_of_siblings_goes_into_the_stage() -> None:
    async def scenario() -> None:
        world = World()
        world.averager.failures = 2
        world.add("bob", stage=1, number=4)
        world.add("carol", stage=1, number=4, ready=False)
        world.add("dave", stage=0, number=9)
        await world.newcomer.get_state()
        assert world.stage.values.tolist() == [10.0, 20.0]
        assert world.averager.asked == [["bob"]] * 3
        assert not world.averager.founded
        assert "no donor of stage 1 (bob: it broke)" in str(world.reason)

    run_virtual(scenario())


def test_nobody_founds_a_run_that_has_committed() -> None:
    async def scenario() -> None:
        world = World()
        world.add("dave", stage=0, number=1)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(world.newcomer.get_state())
            await asyncio.sleep(5.0)
            # Not even when everybody who showed it is gone.
            world.experts.clear()
            await asyncio.sleep(60.0)
            assert not task.done()
            assert not world.averager.founded
            assert "the run has committed rounds, and nobody holds fake/1" in str(world.reason)
            assert "another run.name" in repr(world.newcomer)
            world.add("bob", stage=1, number=1)
            await task
        assert world.stage.values.tolist() == [10.0, 20.0]

    run_virtual(scenario())


def test_what_the_client_wants_to_be_loaded_goes_before_everything_else() -> None:
    async def scenario() -> None:
        world = World()
        world.add("bob", stage=1, number=9)
        world.loaded = 4
        await world.newcomer.get_state()
        assert not world.averager.asked
        assert not world.averager.founded

    run_virtual(scenario())


def test_a_checkpoint_that_cannot_be_read_is_told_and_nothing_is_founded_meanwhile() -> None:
    async def scenario() -> None:
        world = World()
        world.loaded = StateError("round-000004-aaaaaaaa/outer.safetensors has 3 bytes, not 9")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(world.newcomer.get_state())
            await asyncio.sleep(3.0)
            assert str(world.reason) == "waiting: round-000004-aaaaaaaa/outer.safetensors has 3 bytes, not 9"
            assert not world.averager.founded
            world.loaded = 2
            await task
        assert not world.averager.founded

    run_virtual(scenario())
