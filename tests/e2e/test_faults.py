"""Real signals: what is killed is noticed and named, and the rest goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.swarm import open_swarm, pipelines, steps, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_kill_of_the_monitor_stops_nothing_and_kill_of_an_expert_is_reported(tmp_path: Path) -> None:
    with open_swarm(tmp_path) as swarm:
        monitor, entry = swarm.head("monitor", "monitor")
        _, client = swarm.head("client", "client", join=entry)
        experts = [swarm.expert(f"expert-{n}", entry) for n in range(3)]
        swarm.wait_status(client, lambda s: pipelines(s) and steps(s) > 10, "the first pipeline")

        monitor.process.send_signal(signal.SIGKILL)
        monitor.process.wait()
        before = steps(swarm.status(client))
        swarm.wait_status(client, lambda s: pipelines(s) and steps(s) > before + 20, "steps without the monitor")

        # The monitor comes back and goes on with its file, which still has one line for each metric.
        swarm.head("monitor", "monitor", join=client)
        metrics = tmp_path / "e2e" / "metrics.jsonl"
        size = metrics.stat().st_size
        wait_for(lambda: metrics.stat().st_size > size, "metrics after the return")

        seated = {
            peer["peer"]: peer
            for peer in swarm.status(client)["peers"]
            if any(role["expert"] and role["expert"]["seated"] for role in peer["roles"])
        }
        victim = next(e for e in experts if _peer(swarm.status(client), swarm.address(e)) in seated)
        name = _peer(swarm.status(client), swarm.address(victim))
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        told = swarm.wait_status(
            client, lambda s: any(loss["peer"] == name for loss in s["run"]["losses"]), "the loss to be reported"
        )
        loss = next(loss for loss in told["run"]["losses"] if loss["peer"] == name)
        assert loss["kind"] == "UnreachableError"
        assert loss["reason"]

        # The third expert was a spare: it takes the stage, and training goes on.
        now = swarm.wait_status(client, lambda s: pipelines(s), "a pipeline with the spare")
        swarm.wait_status(client, lambda s: pipelines(s) and steps(s) != steps(now), "steps with the spare")


def _peer(status: dict[str, object], address: str) -> str:
    peers = status["peers"]
    assert isinstance(peers, list)
    return next(
        (p["peer"] for p in peers if f"{p['endpoint']['host']}:{p['endpoint']['port']}" == address), "nobody"
    )
