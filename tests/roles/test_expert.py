"""What an expert takes, and what it does not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from distqat.discovery.records import ExpertRecord
from distqat.errors import ComputeError, RefusedError
from distqat.ids import Endpoint, PeerId, StageIndex
from distqat.roles.context import RoleOptions
from distqat.roles.expert import Expert
from distqat.roles.faults import FAULTS, FIRST_REST
from distqat.roles.orders.order import Order
from distqat.rpc.local import Network
from tests.support import run_virtual

STAGE = StageIndex(1)
AT = Endpoint("host", 1)


def test_after_too_many_faults_no_stage_is_taken_for_a_while() -> None:
    async def scenario() -> None:
        record = ExpertRecord(AT, seated=True, stage=STAGE, ready=True)
        experts = {PeerId("b" * 40): SimpleNamespace(record=record)}
        directory = SimpleNamespace(snapshot=lambda: SimpleNamespace(experts=experts))
        context: Any = SimpleNamespace(
            me=PeerId("a" * 40), endpoint=AT, transport=Network().transport("host"), directory=directory
        )
        expert = Expert(context, RoleOptions())
        assert (await expert.assign(Order(STAGE))).seated
        for _ in range(FAULTS):
            assert expert.status().phase != "failed"
            expert._faulted(STAGE, ComputeError("a kernel failed"))
        # At once, and not only when the seat is closed.
        role = expert.status()
        assert role.expert is not None
        assert (role.phase, role.reason, role.expert.seated) == (
            "failed",
            f"takes no stage for {FIRST_REST:.0f} s: a kernel failed",
            False,
        )
        for order in (Order(STAGE), Order(STAGE, is_seated=False)):
            with pytest.raises(RefusedError, match="takes no stage for 10 s: a kernel failed"):
                await expert.assign(order)
        assert not (await expert.assign(Order())).seated
        await asyncio.sleep(FIRST_REST + 0.1)
        assert (await expert.assign(Order(STAGE))).seated

    run_virtual(scenario())
