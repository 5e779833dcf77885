"""An expert is killed while a spare follows its stage: the pipeline goes on at once, and nothing is lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.e2e.swarm import Status, open_swarm, pipelines, seated, steps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

BOUND = 10.0
"""Seconds to the next step on a busy machine; `bench/failover.py` measures how long it takes on a quiet one."""


def warm(status: Status) -> dict[str, int]:
    """The stages that spares follow and could take now, by peer."""
    return {
        peer["peer"]: role["expert"]["follows"] or 0
        for peer in status["peers"]
        for role in peer["roles"]
        if role["expert"] is not None and role["expert"]["warm"]
    }


def test_a_killed_expert_is_replaced_by_the_spare_that_follows_its_stage(tmp_path: Path) -> None:
    # A lease that no busy machine misses: the kill is noticed by what breaks.
    with open_swarm(tmp_path, **{"lease.min": "20", "sync.max_wait": "25"}) as swarm:
        _, head = swarm.head("head", "client")
        experts = {name: swarm.expert(name, head) for name in ("first", "second", "third")}
        before = swarm.wait_status(
            head, lambda s: pipelines(s) and steps(s) > 10 and warm(s), "a pipeline and a warm spare"
        )
        ((spare, stage),) = warm(before).items()
        told = next(role for p in before["peers"] if p["peer"] == spare for role in p["roles"])
        assert f"follows stage {stage} of 2: round" in told["reason"]
        victim = next(peer for peer, expert in seated(before).items() if expert["stage"] == stage)
        process = next(daemon.process for daemon in experts.values() if swarm.peer(before, daemon) == victim)

        began = time.monotonic()
        process.send_signal(signal.SIGKILL)
        process.wait()
        mended = swarm.wait_status(
            head,
            lambda s: any(spare in str(line["route"]) and line["step"] > steps(before) for line in pipelines(s)),
            "a step of the mended pipeline",
        )
        assert time.monotonic() - began < BOUND
        assert [line["pipeline"] for line in mended["pipelines"]] == [line["pipeline"] for line in before["pipelines"]]
        assert (mended["run"]["lost"], mended["run"]["doubled"]) == (0, 0)
        later = swarm.wait_status(head, lambda s: steps(s) > steps(mended) + 10, "further steps")
        assert (later["run"]["lost"], later["run"]["doubled"]) == (0, 0)
