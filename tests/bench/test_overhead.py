"""What is switched off, when a swarm is warm, and what stands beside what."""

from __future__ import annotations

from bench.overhead import COPIES, OFF, ON, Form, Spent, is_warm, lines
from distqat.config import Settings, load
from distqat.ids import Endpoint
from distqat.roles.status import ExpertStatus, PeerStatus, PipelineStatus, RoleStatus, SwarmStatus


def settings(form: Form) -> Settings:
    return load(None, [part for part in form.arguments() if part != "--set"])


def test_all_that_can_be_switched_off_is() -> None:
    off, on = settings(OFF), settings(ON)
    assert not off.plan.followers
    assert (off.checkpoint.steps, off.sync.kept_rounds) == (0, 0)
    assert on.plan.followers
    assert min(on.plan.copy_seconds, on.checkpoint.steps, on.sync.kept_rounds) > 0
    assert [settings(form).plan.copy_seconds for form in COPIES] == [0.5, 1, 5, 10]


def test_every_form_stands_beside_the_one_without_and_only_the_whole_has_a_goal() -> None:
    dear, cheap = Spent(110.0, 55.0, 60.0), Spent(100.0, 50.0, 50.0)
    found = {line.case: line for line in lines({OFF.name: [cheap], ON.name: [dear], COPIES[0].name: [dear]})}
    assert len(found) == 6
    step = found["all of it: a step"]
    assert (step.value, step.peer_value, step.ok) == (110.0, 100.0, False)
    assert [line.case for line in found.values() if line.goal] == ["all of it: a step"]
    even = lines({OFF.name: [cheap], ON.name: [Spent(101.9, 50.0, 50.0)]})
    assert even[0].ok


def test_measuring_begins_when_the_spare_is_where_it_is_to_be() -> None:
    def swarm(is_warm: bool) -> SwarmStatus:
        seated = ExpertStatus(seated=True, ready=True, round=3)
        experts = [*[seated] * 4, ExpertStatus(warm=is_warm)]
        peers = [
            PeerStatus(str(i), Endpoint("h", i + 1), roles=(RoleStatus("expert", expert=one),))
            for i, one in enumerate(experts)
        ]
        drives = RoleStatus(
            "trainer", pipelines=(PipelineStatus("p1", phase="training"), PipelineStatus("p2", phase="training"))
        )
        return SwarmStatus((PeerStatus("head", Endpoint("h", 9), roles=(drives,)), *peers))

    assert is_warm(swarm(is_warm=True), ON)
    assert not is_warm(swarm(is_warm=False), ON)
    assert is_warm(swarm(is_warm=False), OFF)
