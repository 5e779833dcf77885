"""What a client tells of its plan: each decision once, with its reason."""

from __future__ import annotations

import asyncio

from distqat.errors import RefusedError
from distqat.event_log import EventLog
from distqat.events import Kind
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex
from distqat.roles.events.minutes import REPEAT_SECONDS, Minutes
from distqat.roles.plan import Assign, Pipeline
from tests.support import run_virtual

ALICE, TRAINER = PeerId("a" * 40), PeerId("d" * 40)
PIPELINE = Pipeline(PipelineId("p1-00ff"), 2, (Seat(ALICE, Endpoint("a", 1), StageIndex(0)),), TRAINER)


def test_decisions_are_told_with_why() -> None:
    log = EventLog("c" * 40)

    async def scenario() -> None:
        minutes = Minutes(log, "mlp")
        minutes.assigned(Assign(ALICE, StageIndex(1), "stage 1 of 2 has no free expert"))
        minutes.formed(PIPELINE, "replaces stage 0 on bbbbbbbb")
        minutes.adopted(PIPELINE)
        minutes.dissolved(PIPELINE.id, "lost trainer dddddddd")
        minutes.fenced(PIPELINE.id)

    run_virtual(scenario())
    told = [(event.kind, event.subject.told(), event.text) for event in log.since(0)]
    where = {"pipeline": "p1-00ff", "epoch": 2, "peer": TRAINER}
    assert told[0][:2] == (Kind.ASSIGNED, {"peer": ALICE, "stage": "mlp/1"})
    assert told[0][2] == "aaaaaaaa is to take mlp/1: stage 1 of 2 has no free expert"
    assert told[1][:2] == (Kind.FORMED, where)
    assert told[1][2].endswith("over aaaaaaaa, driven by dddddddd: replaces stage 0 on bbbbbbbb")
    assert told[2][:2] == (Kind.ADOPTED, where)
    assert [kind for kind, *_ in told[3:]] == [Kind.DISSOLVED, Kind.FENCED]
    assert "lost trainer dddddddd" in told[3][2]


def test_what_fails_again_and_again_is_told_now_and_then() -> None:
    log = EventLog("c" * 40)

    async def scenario() -> None:
        minutes = Minutes(log, "mlp")
        action = Assign(ALICE, StageIndex(1), "nobody has it")
        for _ in range(8):
            minutes.assigned(action)
            minutes.failed(action, RefusedError("this expert is leaving"))
            await asyncio.sleep(REPEAT_SECONDS / 8)
        minutes.failed(action, RefusedError("it is pinned"))
        minutes.assigned(action)

    run_virtual(scenario())
    events = log.since(0)
    assert [event.kind for event in events] == [Kind.ASSIGNED, Kind.ACTION_FAILED, Kind.ACTION_FAILED, Kind.ASSIGNED]
    assert events[1].text == "to assign (aaaaaaaa) failed: this expert is leaving"
    assert (events[1].subject.how, events[1].subject.peer) == ("RefusedError", ALICE)
