"""Every process of a swarm is killed at once; started again over the same folders, they finish the run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from distqat.cli.daemons import Daemon, address_of
from tests.e2e.swarm import Status, Swarm, open_swarm, pipelines, steps, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def start(swarm: Swarm) -> str:
    """A client and an expert for each stage; where the client answers."""
    settings = [part for key, value in swarm.settings.items() for part in ("--set", f"{key}={value}")]
    head = address(swarm.start("head", "--role", "client", *settings))
    for stage in (0, 1):
        swarm.start(f"expert-{stage}", "--role", "expert", "--join", head)
    return head


def address(daemon: Daemon) -> str:
    """Of this life of the daemon; the note of the one before may still lie there."""
    return wait_for(lambda: str(address_of(daemon) or ""), f"{daemon.name} to listen")


def written(status: Status) -> set[int]:
    """Stages of which there is a checkpoint."""
    held = [role["checkpoints"] for peer in status["peers"] for role in peer["roles"] if role["checkpoints"]]
    return {one["stage"] for found in held for one in found["checkpoints"]}


def test_all_are_killed_and_the_run_is_finished_afterwards(tmp_path: Path) -> None:
    with open_swarm(tmp_path, **{"train.epochs": "2", "checkpoint.steps": "20"}) as swarm:
        head = start(swarm)
        before = swarm.wait_status(head, lambda s: steps(s) > 30 and len(written(s)) == 2, "checkpoints")
        for daemon in swarm.daemons:
            daemon.process.send_signal(signal.SIGKILL)
        for daemon in swarm.daemons:
            daemon.process.wait()
        committed = before["run"]["committed"]
        assert committed < before["run"]["budget"]

        head = start(swarm)
        again = swarm.wait_status(head, lambda s: pipelines(s), "a pipeline that goes on")
        assert steps(again) >= 20, "the steps are counted on, not from the beginning"
        done = swarm.wait_status(head, lambda s: s["run"] and s["run"]["finished"], "the end of the run")
        run = done["run"]
        assert (run["committed"], run["lost"], run["doubled"], run["open"]) == (run["budget"], 0, 0, 0)
        assert all(line["evaluation"] > 0.7 for line in done["pipelines"])
