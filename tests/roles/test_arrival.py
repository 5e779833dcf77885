"""What a seat begins with when it is handed over, or nearly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distqat.errors import DeadlineError
from distqat.ids import Endpoint, PeerId, PipelineId, StepRef
from distqat.model.local import LocalState
from distqat.roles import arrival
from distqat.roles.arrival import Arrival
from distqat.roles.copies.copy import Carried, Copy
from distqat.sections import SyncSection
from distqat.telemetry import Reason, Telemetry, log
from tests.roles.circle import Circle, Numbers, Sibling
from tests.support import run_virtual

DONOR = PeerId("donor")


class Held(Numbers):
    """A stage that takes a copy."""

    version = 0

    def local_state(self) -> LocalState:
        return LocalState(0, {"values/x": self.values.clone()})

    def restore(self, state: LocalState) -> None:
        self.values = state.tensors["values/x"].clone()


class Scene:
    """An heir whose donor gives it a copy, and then says so, or is cut off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_told: bool) -> None:
        self.stage, self.circle = Held(), Circle(SyncSection())
        self.sibling = Sibling(self.circle, "heir", self.stage)
        self.outer = self.sibling.committed
        self.seat: Any = SimpleNamespace(arrived=asyncio.Event(), rounds=self.sibling.rounds)
        self.is_told = is_told
        monkeypatch.setattr(arrival, "inherit", self.inherit)

    @asynccontextmanager
    async def inherit(
        self, circle: Any, layout: Any, donor: Any, accepted: Any, patience: float
    ) -> AsyncIterator[Copy]:
        ones = torch.ones(3)
        state = LocalState(9, {"values/x": torch.full((1, 3), 7.0)})
        carried = Carried({0: ones}, {0: ones}, 0.25)
        origins = (StepRef(PipelineId("p"), 9),)
        accepted.set()
        yield Copy(state, self.outer.digest, (16,), 2, origins, is_ordered=True, carried=carried)
        if not self.is_told:
            raise DeadlineError("no word from the donor")

    async def arrive(self) -> None:
        """Until the seat has its numbers, wherever they are from."""
        record = SimpleNamespace(endpoint=Endpoint("donor", 1), round=0, digest=self.outer.digest)
        directory = SimpleNamespace(snapshot=lambda: SimpleNamespace(experts={DONOR: SimpleNamespace(record=record)}))
        settings = SimpleNamespace(daemon=SimpleNamespace(drain_timeout=5.0))
        context: Any = SimpleNamespace(directory=directory, settings=settings, telemetry=Telemetry())
        holding: Any = SimpleNamespace(
            stage=self.stage,
            averager=self.sibling.averager,
            circle=SimpleNamespace(siblings=list),
            workshop=SimpleNamespace(device=self.sibling.device),
        )
        follower: Any = SimpleNamespace(outer=self.outer, copy=None, copied_from=None, is_founded=True, look=_look)
        arriving: Any = Arrival(context, holding, follower, self.seat, Reason(log, ""), _begin_as_a_newcomer)
        async with asyncio.TaskGroup() as group:
            await arriving.come(group, DONOR)
            await self.seat.arrived.wait()


async def _look(donor: Any) -> None:
    """The follower is as far as its donor."""


async def _begin_as_a_newcomer() -> None:
    raise AssertionError("it holds the state")


@pytest.mark.parametrize("is_told", [True, False], ids=["handed over", "cut off in the end"])
def test_an_heir_whose_donor_is_not_told_keeps_nothing_that_goes_with_its_numbers(
    monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, is_told)
        await scene.arrive()
        rounds, feedback = scene.sibling.rounds, scene.sibling.averager.committed.feedback
        handover, value = rounds.handover, float(scene.stage.values[0, 0])
        found = (value, handover.samples, rounds.steps, rounds.is_ordered, handover.last_share, handover.origins)
        assert found == ((7.0, {0: 16}, 2, True, 0.25, {"p": 9}) if is_told else (0.0, {0: 0}, 0, False, 0.0, {}))
        assert bool(handover.momenta()) is bool(feedback.save()) is is_told

    run_virtual(scenario())
