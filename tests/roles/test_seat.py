"""A seat where a round is cut off between its commit and the stage that should hold it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from distqat.averaging.committed import Receipt
from distqat.config import load
from distqat.ids import PeerId
from distqat.roles.seat import Seat
from distqat.telemetry import Reason, Telemetry, log
from tests.support import run

T = TypeVar("T")


class FakeStage:
    """Two numbers."""

    name, index = "fake/0", 0

    def __init__(self) -> None:
        self.values = torch.zeros(2)

    def flatten(self) -> torch.Tensor:
        return self.values.clone()

    def load_flat(self, values: torch.Tensor) -> None:
        self.values = values.clone()


class FakeDevice:
    """Runs at once; while `is_crowded`, work waits until it is cancelled."""

    is_crowded = False

    async def run(self, work: Callable[[], T]) -> T:
        if self.is_crowded:
            await asyncio.Event().wait()
        return work()


class FakeAverager:
    """Agrees on ones, and makes the device crowded."""

    def __init__(self, device: FakeDevice) -> None:
        self.receipts: list[Any] = []
        self.device = device
        self.locals: list[tuple[list[float], int]] = []

    async def synchronise(self, local: torch.Tensor, samples: int) -> torch.Tensor:
        self.locals.append((local.tolist(), samples))
        self.device.is_crowded = len(self.locals) == 1
        return torch.ones(2)

    def is_due(self, steps: int) -> bool:
        return True


class FakeContext:
    telemetry = Telemetry()


def test_a_round_that_is_committed_reaches_the_stage_although_the_route_broke_meanwhile() -> None:
    async def scenario() -> None:
        stage, device = FakeStage(), FakeDevice()
        averager = FakeAverager(device)
        arguments: list[Any] = [FakeContext(), load().run_config(), stage, device, averager, Reason(log, "")]
        seat = Seat(*arguments)
        cut_off = asyncio.ensure_future(seat.committed(1, 8))
        await asyncio.sleep(0.01)
        assert seat.phase == "averaging"
        cut_off.cancel()
        await asyncio.wait([cut_off])
        device.is_crowded = False
        await seat.begin(True)
        assert stage.values.tolist() == [1.0, 1.0]
        await seat.synchronise()
        # The samples of the first round are in it; what comes next begins at what was agreed.
        assert averager.locals == [([0.0, 0.0], 8), ([1.0, 1.0], 0)]

    run(scenario())


class PatientAverager(FakeAverager):
    """A round after three steps."""

    async def synchronise(self, local: torch.Tensor, samples: int) -> torch.Tensor:
        self.locals.append((local.tolist(), samples))
        return torch.ones(2)

    def is_due(self, steps: int) -> bool:
        return steps >= 3


class HonestAverager(PatientAverager):
    """A round where something was learned, and only there; with a receipt."""

    async def synchronise(self, local: torch.Tensor, samples: int) -> torch.Tensor:
        if samples:
            self.receipts.append(Receipt(len(self.receipts), (PeerId("me"),), samples, 10, 0.1, "ab", ()))
        return await super().synchronise(local, samples)


def test_a_round_is_recorded_once() -> None:
    async def scenario() -> None:
        stage, device = FakeStage(), FakeDevice()
        context = FakeContext()
        context.telemetry = Telemetry()
        averager = HonestAverager(device)
        arguments: list[Any] = [context, load().run_config(), stage, device, averager, Reason(log, "")]
        seat = Seat(*arguments)
        for step in range(1, 7):
            await seat.committed(step, 8)
        # The end of a run asks once more, though nothing was learned since.
        await seat.settle()
        rounds = [metric.values["round"] for metric in context.telemetry.metrics if metric.kind == "round"]
        assert rounds == [0, 1]

    run(scenario())


def test_steps_of_unequal_size_weigh_by_their_samples() -> None:
    async def scenario() -> None:
        stage, device = FakeStage(), FakeDevice()
        averager = PatientAverager(device)
        arguments: list[Any] = [FakeContext(), load().run_config(), stage, device, averager, Reason(log, "")]
        seat = Seat(*arguments)
        for step, samples in enumerate((64, 16, 7, 80, 80, 80), 1):
            await seat.committed(step, samples)
        assert averager.locals == [([0.0, 0.0], 64 + 16 + 7), ([1.0, 1.0], 240)]

    run(scenario())
