"""What the planner makes of what peers say."""

from __future__ import annotations

import pytest

from distqat.ids import Endpoint, PeerId, RunId
from distqat.roles.orders import messages as orders
from distqat.roles.outlook import outlook, speed, stage_costs
from distqat.roles.status import ExpertStatus, PeerStatus, RoleStatus, StepTimes

RUN = RunId("run", "digest")
SEATED = ExpertStatus(seated=True, stage=1, ready=True, parameters=100, uplink=1e6, downlink=2e6)


def peer(name: str, *roles: RoleStatus, run: RunId = RUN) -> tuple[PeerId, PeerStatus]:
    return PeerId(name), PeerStatus(name, Endpoint(name, 1), run=run, roles=roles)


def test_experts_and_trainers_that_work_for_the_run_are_seen() -> None:
    statuses = dict(
        [
            peer("alice", RoleStatus("expert", "training", expert=SEATED), RoleStatus("trainer", "training")),
            peer("bob", RoleStatus("expert", "following", expert=ExpertStatus(follows=1, warm=True))),
            peer("carol", RoleStatus("expert", "draining", expert=SEATED), RoleStatus("trainer", "failed")),
            peer("dave", RoleStatus("expert", "training", expert=SEATED), run=RunId("other", "digest")),
        ]
    )
    view = outlook(statuses, RUN, 2)
    alice, bob = view.experts
    assert (alice.peer, alice.stage, alice.is_ready, alice.uplink, alice.downlink) == ("alice", 1, True, 1e6, 2e6)
    assert (bob.peer, bob.stage, bob.follows, bob.is_warm) == ("bob", None, 1, True)
    assert view.trainers == ("alice",)


def test_a_stage_costs_its_parameters_once_all_are_known() -> None:
    other = ExpertStatus(seated=True, stage=0, parameters=50)
    assert stage_costs([SEATED], 2) == ()
    assert stage_costs([SEATED, other, ExpertStatus()], 2) == (50.0, 100.0)


def test_the_speed_of_a_device_does_not_count_the_time_in_which_it_waits() -> None:
    half = StepTimes(seconds=10.0, compute=5.0)
    busy = ExpertStatus(seated=True, parameters=100, samples_per_second=4.0, times=half)
    assert speed(SEATED) == 0.0
    assert speed(busy) == pytest.approx(800.0)


def test_links_cross_the_wire() -> None:
    reply = orders.AssignReply(SEATED)
    assert orders.decode(orders.AssignReply, orders.encode(reply)) == reply
