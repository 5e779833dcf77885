"""Fragments and steps beside rounds on real daemons, from the first step to the last round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.swarm import Status, ctl, experts, open_swarm, pipelines, steps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SETTINGS = {
    "train.epochs": "3",
    "data.adaptive": "false",
    "sync.warmup_steps": "3",
    "sync.inner_steps": "8",
    "sync.ramp_rounds": "2",
    "sync.fragments": "2",
    "sync.overlap": "2",
    "sync.codec": "int8",
}


@pytest.mark.soak
def test_overlapped_rounds_of_two_fragments_to_the_end_of_a_run(tmp_path: Path) -> None:
    with open_swarm(tmp_path, **SETTINGS) as swarm:
        _, head = swarm.head("head", "monitor", "client")
        for number in range(4):
            swarm.expert(f"expert-{number}", head)
        swarm.wait_status(head, lambda s: len(pipelines(s)) == 2 and steps(s) > 60, "two pipelines")
        swarm.wait_status(
            head,
            lambda s: all({tuple(r["fragments"]) for r in e["receipts"]} >= {(0,), (1,)} for e in experts(s)),
            "rounds of both fragments",
        )
        assert "int8" in ctl("status", "--peer", head).stdout
        check_trace(head, tmp_path / "trace.json")

        done = swarm.wait_status(head, lambda s: s["run"]["finished"], "the end of the run")
        run = done["run"]
        assert (run["lost"], run["doubled"], run["committed"]) == (0, 0, run["budget"])
        check_digests(done)
        lines = [json.loads(line) for line in (tmp_path / "e2e" / "metrics.jsonl").read_text().splitlines()]
        rounds = [line for line in lines if line["kind"] == "round"]
        shared = [line for line in rounds if line["contributors"] == 2]
        assert {line["codec"] for line in shared} == {"int8"}
        assert all(0 < line["bits"] < 32 for line in shared)
        # Of the eight steps since a fragment's last round two went on beside that, and are dropped from it.
        assert shared[-1]["samples"] <= 2 * 6 * 16
        assert not [line for line in lines if line["kind"] == "failed round"]


def check_trace(head: str, out: Path) -> None:
    """The last steps of a pipeline, with the rounds that they went on beside in a lane of their own."""
    status = json.loads(ctl("status", "--json", "--peer", head).stdout)
    name, step = max((line["pipeline"], line["step"]) for line in status["pipelines"])
    wanted = f"{max(1, step - 12)}-{step}"
    assert ctl("trace", wanted, "--pipeline", name, "--out", str(out), "--peer", head).returncode == 0
    events: list[Any] = [event for event in json.loads(out.read_text())["traceEvents"] if event["ph"] == "X"]
    assert "round" in {event["name"] for event in events if event["cat"] == "round beside steps"}


def check_digests(status: Status) -> None:
    """All siblings ended alike, and every round at the same numbers."""
    for stage in (0, 1):
        siblings = [expert for expert in experts(status) if expert["stage"] == stage]
        assert len(siblings) == 2
        assert len({(expert["round"], expert["digest"]) for expert in siblings}) == 1
        told = {(r["round"], r["digest"]) for expert in siblings for r in expert["receipts"]}
        assert len(told) == len({number for number, _ in told})
