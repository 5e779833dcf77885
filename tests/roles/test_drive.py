"""A drive over a route that is only pretended: what is submitted, replayed and chosen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from distqat.config import RunConfig, load
from distqat.data.client import LedgerClient, LocalClaims
from distqat.data.ledger import Ledger
from distqat.data.reading import OwnReading
from distqat.data.sampler import Sampler, progress
from distqat.data.sources import Arrays, ArraySplit, Source
from distqat.discovery.records import Pace
from distqat.errors import DataError
from distqat.events import Kind
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex
from distqat.model.agreement import LossScale, Verdict
from distqat.model.shapes import DataShape
from distqat.pipeline.route import HopError, Route
from distqat.pipeline.tally import StepResult
from distqat.pipeline.words import AS_IT_IS
from distqat.roles import drive as module
from distqat.roles.batches import step_seconds
from distqat.roles.drive import Drive
from distqat.roles.fuel import Fuel
from distqat.rpc.local import Network
from distqat.telemetry import Telemetry
from tests.support import run_virtual, until

BUDGET = 1600
MINE, OTHER = PipelineId("mine"), PipelineId("other")
SEATS = (Seat(PeerId("a" * 40), Endpoint("alice", 1), StageIndex(0)),)
SAMPLES = ArraySplit({"inputs": np.arange(BUDGET, dtype=np.float32)[:, None], "labels": np.arange(BUDGET)})
SOURCE = Source("numbers", "cv", DataShape("image", (1, 1, 1), BUDGET), SAMPLES, SAMPLES)
READING = OwnReading(SOURCE, Sampler(BUDGET, 7), is_embedded=True)


@dataclass(frozen=True)
class Submitted:
    """What a link was given."""

    step: int
    first: float
    samples: int
    microbatches: int
    progress: float


@dataclass
class FakeRoute:
    """All routes of a pipeline over one stage: a microbatch takes `seconds`. Step `breaks_at` is never committed by
    the route that gets it first."""

    seconds: float = 4.0
    breaks_at: int = 0
    verdict: Verdict = AS_IT_IS
    bad_steps: tuple[int, ...] = ()
    """The batch that first comes as one of these is bad: its step fails each time in the same way."""
    evaluation_failures: int = 0
    """So many evaluations fail."""
    evaluations: int = 0
    step: int = 0
    bad: set[float] = field(default_factory=set)
    submitted: list[Submitted] = field(default_factory=list)

    @asynccontextmanager
    async def open(self, transport: object, me: PeerId, run: object, route: Route, *_: object) -> AsyncIterator[Any]:
        async with asyncio.TaskGroup() as group:
            link = FakeLink(self, route)
            working = group.create_task(link.work())
            yield link
            working.cancel()


class FakeLink:
    """One of them."""

    verdict = Verdict(1.0, LossScale())

    def __init__(self, shared: FakeRoute, route: Route) -> None:
        self.shared = shared
        self.route = route
        self.step = shared.step
        self._ahead: asyncio.Queue[Submitted] = asyncio.Queue(2)
        self._changed = asyncio.Condition()
        self._sizes: dict[int, float] = {}

    async def submit(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        microbatches: int,
        progress: float = 0.0,
        claim: int = 0,
        warmup: float = 0.0,
    ) -> None:
        inputs = tensors["inputs"]
        given = Submitted(step, float(inputs[0, 0]), len(inputs), microbatches, progress)
        self.shared.submitted.append(given)
        await self._ahead.put(given)

    async def result(self, step: int) -> StepResult:
        async with self._changed:
            await self._changed.wait_for(lambda: step in self._sizes)
        seconds = self._sizes[step]
        return StepResult(step, {"loss": 1.0}, seconds, seconds, self.shared.verdict)

    async def work(self) -> None:
        while True:
            given = await self._ahead.get()
            if given.step == self.shared.breaks_at:
                self.shared.breaks_at = 0
                raise HopError("gone", self.route.seats[0].peer, "UnreachableError")
            if given.step in self.shared.bad_steps or given.first in self.shared.bad:
                self.shared.bad_steps = tuple(step for step in self.shared.bad_steps if step != given.step)
                self.shared.bad.add(given.first)
                raise HopError("the input holds NaN", self.route.seats[0].peer, "TensorError")
            seconds = step_seconds(self.shared.seconds, given.microbatches, 1)
            await asyncio.sleep(seconds)
            async with self._changed:
                self.step = self.shared.step = given.step
                self._sizes[given.step] = seconds
                self._changed.notify_all()

    async def settle(self) -> None:
        """Nobody to agree with."""

    async def evaluate(self, tensors: Mapping[str, torch.Tensor], microbatches: int) -> dict[str, float]:
        self.shared.evaluations += 1
        if self.shared.evaluation_failures:
            self.shared.evaluation_failures -= 1
            raise HopError("no memory", self.route.seats[0].peer, "ComputeError")
        return {"loss": 1.0, "correct": 1.0, "samples": float(len(tensors["inputs"]))}


def config(*overrides: str) -> RunConfig:
    return load(
        overrides=["data.batch=64", "data.microbatches=8", "model.stages=1", "train.epochs=1", *overrides]
    ).run_config()


@dataclass
class Scene:
    """A drive and what is around it."""

    drive: Drive
    ledger: Ledger
    telemetry: Telemetry


def a_scene(
    monkeypatch: pytest.MonkeyPatch,
    route: FakeRoute,
    paces: list[Pace],
    *overrides: str,
    reading: OwnReading = READING,
) -> Scene:
    monkeypatch.setattr(module, "open_route", route.open)
    telemetry, ledger = Telemetry(), Ledger(BUDGET)
    transport = Network().transport("trainer")
    fuel = Fuel(PeerId("t" * 40), transport, config(*overrides), reading, telemetry, lambda: paces)
    data = LedgerClient(MINE, reading, LocalClaims(ledger))
    scene = Scene(Drive(fuel, MINE, data), ledger, telemetry)
    scene.drive.order(1, SEATS)
    return scene


async def drive_to_the_end(scene: Scene) -> None:
    async with asyncio.TaskGroup() as group:
        working = group.create_task(scene.drive.work())
        await until(lambda: scene.drive.status(0.0).phase == "finished", timeout=1e6, pause=20.0)
        scene.drive.drain()
        await working
    assert (scene.ledger.committed, scene.ledger.doubled, scene.ledger.lost) == (BUDGET, 0, 0)


def test_every_step_carries_the_runs_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        route = FakeRoute()
        await drive_to_the_end(a_scene(monkeypatch, route, []))
        assert [given.step for given in route.submitted] == list(range(1, 26))
        assert [given.progress for given in route.submitted] == [i * 64 / BUDGET for i in range(25)]
        assert progress(0, BUDGET) == 0.0
        assert progress(BUDGET, BUDGET) == 1.0

    run_virtual(main())


def test_a_replay_is_what_was_broken_though_the_number_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        # After eight steps it adapts, with steps of the old size on their way; then the route breaks.
        paces = [Pace(PipelineId(f"other{i}"), 1.0, 8) for i in range(3)]
        route = FakeRoute(breaks_at=10)
        scene = a_scene(monkeypatch, route, paces)
        await drive_to_the_end(scene)
        twice = len(route.submitted) - len({given.step for given in route.submitted})
        assert scene.drive.status(0.0).replayed == twice > 1
        by_step: dict[int, set[Submitted]] = {}
        for given in route.submitted:
            by_step.setdefault(given.step, set()).add(given)
        assert all(len(given) == 1 for given in by_step.values())
        assert len(route.submitted) > len(by_step)
        sizes = [given.pop().microbatches for _, given in sorted(by_step.items())]
        assert sizes[:10] == [8] * 10
        assert set(sizes[12:-1]) == {2}

    run_virtual(main())


def test_the_number_and_the_pace_are_shown_told_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        paces = [Pace(OTHER, 1.0, 8)]
        route = FakeRoute()
        scene = a_scene(monkeypatch, route, paces)
        assert scene.drive.pace is None
        async with asyncio.TaskGroup() as group:
            working = group.create_task(scene.drive.work())
            await until(lambda: scene.drive.status(0.0).step >= 14, timeout=1e6, pause=20.0)
            status, pace = scene.drive.status(0.0), scene.drive.pace
            assert status.microbatches == 3
            assert status.microbatch_seconds == pytest.approx(4.0)
            assert pace == Pace(MINE, status.microbatch_seconds, 3)
            lines = [metric.values for metric in scene.telemetry.metrics if metric.kind == "step"]
            assert [(line["microbatches"], line["samples"]) for line in lines[:8]] == [(8, 64)] * 8
            assert (lines[-1]["microbatches"], lines[-1]["samples"]) == (3, 24)
            assert lines[-1]["microbatch_seconds"] == pytest.approx(4.0)
            # Other experts: what was measured is forgotten; the number stays until it is measured again.
            elsewhere = (Seat(PeerId("b" * 40), Endpoint("bob", 1), StageIndex(0)),)
            scene.drive.order(2, elsewhere)
            assert (scene.drive.pace, scene.drive.status(0.0).microbatches) == (None, 3)
            scene.drive.drain()
            await working

    run_virtual(main())


def test_a_fixed_batch_is_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        route = FakeRoute()
        await drive_to_the_end(a_scene(monkeypatch, route, [Pace(OTHER, 1.0, 8)], "data.adaptive=false"))
        assert {(given.samples, given.microbatches) for given in route.submitted} == {(64, 8)}

    run_virtual(main())


def test_a_step_that_is_skipped_is_told_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        scene = a_scene(monkeypatch, FakeRoute(verdict=Verdict(0.0, LossScale(512.0))), [])
        await drive_to_the_end(scene)
        lines = [metric.values for metric in scene.telemetry.metrics if metric.kind == "step"]
        assert {(line["factor"], line["loss_scale"]) for line in lines} == {(0.0, 512.0)}

    with caplog.at_level("INFO", logger="distqat"):
        run_virtual(main())
    assert "step 3 is skipped, its gradients are not finite; the loss scale is now 512" in caplog.text


def test_a_batch_is_claimed_while_the_steps_before_it_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        route = FakeRoute(seconds=100.0)
        scene = a_scene(monkeypatch, route, [])
        async with asyncio.TaskGroup() as group:
            working = group.create_task(scene.drive.work())
            await until(lambda: route.step == 2, timeout=1e6, pause=20.0)
            # The present step, two that the link has taken, one that it is offered, and one claimed beyond.
            assert scene.ledger.open == 5 * 64
            scene.drive.drain()
            await working
        assert scene.ledger.open == 0
        assert scene.ledger.committed == route.step * 64

    run_virtual(main())


def test_a_batch_that_fails_again_and_again_is_skipped_and_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        route = FakeRoute(bad_steps=(4,))
        scene = a_scene(monkeypatch, route, [], "data.adaptive=false")
        async with asyncio.TaskGroup() as group:
            working = group.create_task(scene.drive.work())
            await until(lambda: scene.drive.status(0.0).phase == "finished", timeout=1e6, pause=20.0)
            scene.drive.drain()
            await working
        ledger = scene.ledger
        assert (ledger.committed, ledger.skipped, ledger.doubled, ledger.lost) == (BUDGET - 64, 64, 0, 0)
        assert ledger.finished
        # Three times, the second and third alone on its way; then the next batch is step 4.
        (bad,) = route.bad
        assert [given.step for given in route.submitted if given.first == bad] == [4, 4, 4]
        assert route.step == BUDGET // 64 - 1
        (line,) = [metric for metric in scene.telemetry.metrics if metric.kind == "skipped"]
        assert line.values["samples"] == 64
        assert "TensorError at stage 0: the input holds NaN" in line.labels["reason"]
        (event,) = [event for event in scene.telemetry.events.since(0) if event.kind == Kind.BATCH_SKIPPED]
        assert (event.subject.step, event.subject.samples) == (4, 64)

    run_virtual(main())
    assert "skips samples 192 to 256: failed 3 times in the same way" in caplog.text


@pytest.mark.parametrize("every", [0, 5])
def test_an_evaluation_that_always_fails_is_given_up_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    async def main() -> None:
        route = FakeRoute(evaluation_failures=1000)
        scene = a_scene(monkeypatch, route, [], "data.adaptive=false", f"train.evaluate_every={every}")
        await drive_to_the_end(scene)
        # The batch that was under way beside it is not to blame.
        assert scene.ledger.skipped == 0
        assert route.evaluations == 4
        assert "not evaluated: evaluations failed 4 times in the same way: ComputeError" in str(scene.drive)
        kinds = [event.kind for event in scene.telemetry.events.since(0)]
        assert kinds.count(Kind.EVALUATIONS_ENDED) == 1

    run_virtual(main())


def test_an_evaluation_is_tried_again_after_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        route = FakeRoute(evaluation_failures=3)
        scene = a_scene(monkeypatch, route, [], "data.adaptive=false")
        await drive_to_the_end(scene)
        # One for each batch of held-out samples, after three that failed.
        assert route.evaluations > 4
        assert scene.drive.status(0.0).evaluation > 0

    run_virtual(main())


def test_a_pipeline_whose_batches_all_fail_is_given_up_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        route = FakeRoute(bad_steps=(1,), bad=set(map(float, range(BUDGET))))
        scene = a_scene(monkeypatch, route, [], "data.adaptive=false")
        await scene.drive.work()
        status = scene.drive.status(0.0)
        assert (status.phase, status.step) == ("failed", 0)
        assert "every batch fails: failed 3 times in the same way: TensorError at stage 0" in status.reason
        ledger = scene.ledger
        assert (ledger.committed, ledger.skipped, ledger.open, ledger.lost) == (0, 3 * 64, 0, 0)
        # It is shown until the client has seen it.
        assert scene.drive.is_wanted

    run_virtual(main())


class Unreadable(OwnReading):
    """Batches with one of these samples, by position, cannot be read; nor can held-out ones if they are `held`."""

    def __init__(self, positions: Iterable[int] = (), held: bool = False) -> None:
        super().__init__(SOURCE, Sampler(BUDGET, 7))
        self._positions = set(positions)
        self._held = held

    async def train(self, begin: int, end: int) -> Arrays:
        if not self._positions.isdisjoint(range(begin, end)):
            raise DataError("a file is no image")
        return await super().train(begin, end)

    async def held_out(self, begin: int, end: int) -> Arrays:
        if self._held:
            raise DataError("a file is no image")
        return await super().held_out(begin, end)


async def drive_until_it_is_over(scene: Scene) -> None:
    async with asyncio.TaskGroup() as group:
        working = group.create_task(scene.drive.work())
        over = lambda: scene.drive.status(0.0).phase in ("finished", "failed")  # noqa: E731
        await until(over, timeout=1e6, pause=20.0)
        scene.drive.drain()
        await working


def test_a_batch_that_cannot_be_read_is_skipped_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        route = FakeRoute()
        scene = a_scene(monkeypatch, route, [], "data.adaptive=false", reading=Unreadable([200]))
        await drive_until_it_is_over(scene)
        ledger = scene.ledger
        assert (ledger.committed, ledger.skipped, ledger.doubled, ledger.lost) == (BUDGET - 64, 64, 0, 0)
        assert ledger.finished
        # The route stays open, and the next batch is that step.
        assert [given.step for given in route.submitted] == list(range(1, 25))
        (line,) = [metric for metric in scene.telemetry.metrics if metric.kind == "skipped"]
        assert line.values["samples"] == 64
        assert line.labels["reason"] == "samples 192 to 256 cannot be read: a file is no image"
        (event,) = [event for event in scene.telemetry.events.since(0) if event.kind == Kind.BATCH_SKIPPED]
        assert (event.subject.step, event.subject.samples) == (4, 64)

    run_virtual(main())


def test_a_pipeline_whose_source_is_gone_fails_with_the_reason_and_loses_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        # Steps are slow: some are still under way when the third batch is refused.
        route = FakeRoute(seconds=1000.0)
        scene = a_scene(monkeypatch, route, [], "data.adaptive=false", reading=Unreadable(range(640, BUDGET)))
        await drive_until_it_is_over(scene)
        status, ledger = scene.drive.status(0.0), scene.ledger
        assert (status.phase, status.step) == ("failed", 10)
        assert status.reason == "every batch fails: samples 768 to 832 cannot be read: a file is no image"
        assert (ledger.committed, ledger.skipped, ledger.open, ledger.lost) == (640, 3 * 64, 0, 0)
        assert scene.drive.is_wanted

    run_virtual(main())


def test_a_pipeline_whose_samples_are_no_batches_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def submit(*_: Any) -> None:
        raise DataError("a batch needs 'inputs'")

    async def main() -> None:
        monkeypatch.setattr(FakeLink, "submit", submit)
        scene = a_scene(monkeypatch, FakeRoute(), [], "data.adaptive=false")
        await drive_until_it_is_over(scene)
        status, ledger = scene.drive.status(0.0), scene.ledger
        assert status.phase == "failed"
        assert "failed 3 times in the same way: DataError at the trainer: a batch needs 'inputs'" in status.reason
        assert (ledger.committed, ledger.skipped, ledger.open, ledger.lost) == (0, 3 * 64, 0, 0)

    run_virtual(main())


@pytest.mark.parametrize("every", [0, 5])
def test_held_out_samples_that_cannot_be_read_end_evaluations_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    async def main() -> None:
        route, overrides = FakeRoute(), ("data.adaptive=false", f"train.evaluate_every={every}")
        scene = a_scene(monkeypatch, route, [], *overrides, reading=Unreadable(held=True))
        await drive_to_the_end(scene)
        assert (scene.ledger.skipped, route.evaluations) == (0, 0)
        assert len(route.submitted) == 25
        said = "not evaluated: the held-out samples 0 to 256 cannot be used: a file is no image"
        assert said in scene.drive.status(0.0).reason
        kinds = [event.kind for event in scene.telemetry.events.since(0)]
        assert kinds.count(Kind.EVALUATIONS_ENDED) == 1

    run_virtual(main())
