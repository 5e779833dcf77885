"""Daemons on machines behind 10 Mbit/s, whose rounds never rest: no lease ends, every round commits, all agree."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.machines import Machine, open_machines
from distqat.cli.daemons import Daemon
from tests.e2e.swarm import Swarm, wait_for
from tests.namespaces import needs_namespaces
from tests.support import run

RATE = 10e6
"""Bits per second of each cable, each way."""

Row = Mapping[str, Any]

RESTLESS = {
    "run.name": "e2e",
    "model.name": "mlp",
    "model.options": "{hidden: 600, depth: 2}",
    "data.batch": "16",
    "train.epochs": "100000",
    "plan.max_pipelines": "2",
    "sync.warmup_steps": "100000",
    "sync.codec": "none",
    "lease.min": "3",
}
"""A round after each step, of all parameters as they are."""


class FarSwarm(Swarm):
    """Its daemons are on machines of their own, by name."""

    def __init__(self, folder: Path, settings: dict[str, str], machines: Mapping[str, Machine]) -> None:
        super().__init__(folder, settings)
        self.machines = machines

    def start(self, name: str, *arguments: str) -> Daemon:
        machine, output = self.machines[name], self.folder / f"{name}.out"
        assert machine.namespace is not None
        local = {"state_dir": str(self.folder / "states" / name), "log_dir": str(self.folder), "threads": "1"}
        command = ["ip", "netns", "exec", machine.namespace, sys.executable, "-m", "distqat.cli.distqatd", *arguments]
        command += ["--listen", f"{machine.host}:0"]
        command += [part for key, value in local.items() for part in ("--set", f"daemon.{key}={value}")]
        with output.open("wb") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)
        daemon = Daemon(name, process, output)
        self.daemons.append(daemon)
        return daemon

    def rows(self) -> list[Row]:
        """What the monitor has written so far."""
        file = self.folder / "e2e" / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def rounds(rows: list[Row]) -> dict[tuple[str, int], set[str]]:
    """The digests of every round of every stage."""
    found: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        if row["kind"] == "round":
            found.setdefault((row["stage"], int(row["round"])), set()).add(row["digest"])
    return found


def shared(rows: list[Row]) -> int:
    """Rounds of two contributors that both have told of."""
    peers: dict[tuple[str, int], int] = {}
    for row in rows:
        if row["kind"] == "round" and row["contributors"] == 2:
            peers[row["stage"], int(row["round"])] = peers.get((row["stage"], int(row["round"])), 0) + 1
    return sum(count == 2 for count in peers.values())


def check(folder: Path, stages: int, enough: int, seconds: float) -> None:
    """Two pipelines of so many stages; each expert of the second shares a machine with one of the first."""

    async def scenario() -> None:
        async with open_machines(3, RATE) as [centre, *sides]:
            names = {f"expert-{stage}-{side}": sides[side] for stage in range(stages) for side in range(2)}
            settings = {**RESTLESS, "model.stages": str(stages)}
            swarm = FarSwarm(folder, settings, {"head": centre, **names})
            with ExitStack() as stack:
                stack.callback(swarm.stop)
                await asyncio.to_thread(follow, swarm, list(names), lambda: shared(swarm.rows()) >= enough, seconds)
                rows = swarm.rows()
            assert [row for row in rows if row["kind"] in ("loss", "failed round")] == []
            assert all(row["lost"] == 0 for row in rows if row["kind"] == "round")
            assert all(len(digests) == 1 for digests in rounds(rows).values())
            assert "lost" not in (folder / "head.out").read_text()

    run(scenario(), timeout=seconds + 60)


def follow(swarm: FarSwarm, experts: list[str], is_enough: Callable[[], bool], seconds: float) -> None:
    """Start all of them, and wait for so many rounds."""
    _, address = swarm.head("head", "client", "monitor")
    for name in experts:
        swarm.expert(name, address)
    wait_for(lambda: (swarm.folder / "e2e" / "metrics.jsonl").exists(), "metrics")
    wait_for(is_enough, "rounds", seconds)


@pytest.mark.e2e
@needs_namespaces
@pytest.mark.timeout(240)
def test_at_10_mbit_no_lease_ends_while_rounds_go_on(tmp_path: Path) -> None:
    check(tmp_path, stages=1, enough=6, seconds=150.0)


@pytest.mark.soak
@needs_namespaces
@pytest.mark.timeout(600)
def test_at_10_mbit_no_lease_ends_in_pipelines_of_two_stages(tmp_path: Path) -> None:
    check(tmp_path, stages=2, enough=100, seconds=400.0)
