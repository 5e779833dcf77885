"""`distqatctl trace` on real daemons: one step of a pipeline, from processes whose clocks have nothing in common."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.swarm import ctl, experts, open_swarm, steps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

STAGES, MICROBATCHES = 2, 4

SETTINGS = {
    "model.stages": str(STAGES),
    "data.microbatches": str(MICROBATCHES),
    "data.adaptive": "false",
    # However long a busy machine makes the round trips look.
    "pipeline.max_in_flight": str(STAGES),
    # Nobody gives up on a stopped expert while the test asks for it.
    "lease.min": "20",
    "sync.max_wait": "60",
}


@pytest.mark.soak
def test_a_step_is_traced_over_all_peers_and_a_dead_one_is_named(tmp_path: Path) -> None:
    with open_swarm(tmp_path, **SETTINGS) as swarm:
        _, head = swarm.head("head", "monitor", "client")
        daemons = [swarm.expert(f"expert-{n}", head) for n in range(STAGES)]
        status = swarm.wait_status(head, lambda s: s["healthy"] and steps(s) > 40, "a pipeline")
        assert all(expert["times"]["compute"] > 0 for expert in experts(status))
        assert "computing" in ctl("status", "--peer", head).stdout

        out = tmp_path / "trace.json"
        done = ctl("trace", "last", "--out", str(out), "--peer", head)
        assert done.returncode == 0, done.stderr + done.stdout
        assert str(out) in done.stdout
        check(json.loads(out.read_text()))

        late = ctl("trace", "123456789", "--out", str(out), "--peer", head)
        assert (late.returncode, "not committed yet" in late.stderr) == (2, True), late.stderr
        assert ctl("trace", "1", "--pipeline", "nobody", "--peer", head).returncode == 2

        # Alive but silent, and still on the route.
        os.kill(daemons[0].process.pid, signal.SIGSTOP)
        partly = ctl("trace", "last", "--out", str(out), "--peer", head)
        assert partly.returncode == 1, partly.stderr + partly.stdout
        assert "not in it: " in partly.stdout
        assert json.loads(out.read_text())["traceEvents"]


def check(tree: dict[str, Any]) -> None:
    """What holds for any run, however slow the machine: 1F1B with at most S - i microbatches in flight at stage i."""
    events = [event for event in tree["traceEvents"] if event["ph"] == "X" and event["cat"] == "compute"]
    assert sum(event["ph"] == "M" and event["name"] == "process_name" for event in tree["traceEvents"]) == STAGES + 1
    slack = 1e6 * 2 * max(clock["error"] for clock in tree["otherData"]["clocks"].values())
    rows = []
    for stage in range(STAGES):
        row = sorted((event for event in events if event["pid"] == stage + 1), key=lambda event: event["ts"])
        assert all(first["ts"] + first["dur"] <= second["ts"] + 1.0 for first, second in pairwise(row))
        rows.append([event for event in row if event["name"] in ("forward", "backward", "loss")])
        names = [event["name"] for event in rows[-1]]
        if stage == STAGES - 1:
            assert names == ["loss"] * MICROBATCHES
        else:
            under_way = [names[:end].count("forward") - names[:end].count("backward") for end in range(len(names) + 1)]
            assert max(under_way) <= STAGES - stage
            assert sorted(names) == ["backward"] * MICROBATCHES + ["forward"] * MICROBATCHES
    for above, below in pairwise(rows):
        for index in range(MICROBATCHES):
            first = next(e for e in above if e["name"] == "forward" and e["args"]["index"] == index)
            second = next(e for e in below if e["name"] in ("forward", "loss") and e["args"]["index"] == index)
            assert first["ts"] + first["dur"] <= second["ts"] + slack
