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


@pytest.mark.parametrize("is_told", [True, False], ids=["handed over", "cut off in the end"])
def test_an_heir_whose_donor_is_not_told_keeps_nothing_that_goes_with_its_numbers(
    monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    ones = torch.ones(3)

    async def scenario() -> None:
        stage, circle = Held(), Circle(SyncSection())
        sibling = Sibling(circle, "heir", stage)
        outer, rounds, feedback = sibling.committed, sibling.rounds, sibling.averager.committed.feedback
        state = LocalState(9, {"values/x": torch.full((1, 3), 7.0)})
        origins = (StepRef(PipelineId("p"), 9),)
        carried = Carried({0: ones}, {0: ones}, 0.25)
        copy = Copy(state, outer.digest, (16,), 2, origins, is_ordered=True, carried=carried)

        @asynccontextmanager
        async def inherit(circle: Any, layout: Any, donor: Any, accepted: Any, patience: float) -> AsyncIterator[Copy]:
            accepted.set()
            yield copy
            if not is_told:
                raise DeadlineError("no word from the donor")

        async def look(donor: Any) -> None:
            pass

        async def nothing() -> None:
            raise AssertionError("a newcomer")

        monkeypatch.setattr(arrival, "inherit", inherit)
        record = SimpleNamespace(endpoint=Endpoint("donor", 1), round=0, digest=outer.digest)
        directory = SimpleNamespace(snapshot=lambda: SimpleNamespace(experts={DONOR: SimpleNamespace(record=record)}))
        settings = SimpleNamespace(daemon=SimpleNamespace(drain_timeout=5.0))
        context: Any = SimpleNamespace(directory=directory, settings=settings, telemetry=Telemetry())
        holding: Any = SimpleNamespace(
            stage=stage,
            averager=sibling.averager,
            circle=SimpleNamespace(siblings=list),
            workshop=SimpleNamespace(device=sibling.device),
        )
        follower: Any = SimpleNamespace(outer=outer, copy=None, copied_from=None, is_founded=True, look=look)
        seat: Any = SimpleNamespace(arrived=asyncio.Event(), rounds=rounds)
        arriving: Any = Arrival(context, holding, follower, seat, Reason(log, ""), nothing)
        async with asyncio.TaskGroup() as group:
            await arriving.come(group, DONOR)
            await seat.arrived.wait()
        handover = rounds.handover
        if is_told:
            assert (float(stage.values[0, 0]), handover.samples, rounds.steps, rounds.is_ordered) == (
                7.0,
                {0: 16},
                2,
                True,
            )
            assert (handover.last_share, handover.origins) == (0.25, {"p": 9})
            assert handover.momenta()
            assert feedback.save()
        else:
            assert (float(stage.values[0, 0]), handover.samples, rounds.steps, rounds.is_ordered) == (
                0.0,
                {0: 0},
                0,
                False,
            )
            assert (handover.last_share, handover.origins) == (0.0, {})
            assert not handover.momenta()
            assert not feedback.save()

    run_virtual(scenario())
