"""Whole daemons tell what they did: in a trace, in their status, and in metric lines."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distqat.cli import perfetto
from distqat.cli.trace import Steps, Trace, collect
from distqat.errors import StaleError
from distqat.ids import Endpoint
from distqat.roles.remote import Remote
from tests.sim.swarm import PORT, World, open_world, steps
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

STAGES, MICROBATCHES = 3, 4

SETTINGS = (
    f"model.stages={STAGES}",
    f"data.microbatches={MICROBATCHES}",
    "data.adaptive=false",
    "monitor.interval=0.1",
)


async def traced(world: World, what: str) -> Trace:
    """As `distqatctl trace` asks."""
    remote = Remote(world.network.transport("observer"), Endpoint("head", PORT), seconds=20.0)
    return await collect(remote, Steps.parse(what))


def test_a_step_can_be_seen_over_all_peers_of_a_pipeline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *SETTINGS) as world:
            await world.start("head", "client", "monitor")
            for host in ("alice", "bob", "carol"):
                await world.start(host, "expert", join="head")
            status = await world.until("head", lambda s: steps(s) > 12)
            trace = await traced(world, "last")
            assert not trace.silent
            assert trace.steps.first > 12
            check(perfetto.trace(trace.pipeline, trace.told), trace.steps.first)
            ahead = trace.steps.first + 1_000_000
            with pytest.raises(StaleError, match=f"step {ahead} of pipeline .*: not committed yet; its peers know of"):
                await traced(world, str(ahead))
            pair = (trace.steps.first - 1, trace.steps.first)
            for told in (await traced(world, "{}-{}".format(*pair))).told:
                for stage in told.stages:
                    assert {span.step for span in stage.spans} >= set(pair)
                    assert [line.step for line in stage.steps] == list(pair)
            for _, expert in status.experts():
                assert expert.times is not None
                parts = expert.times.compute + expert.times.round + expert.times.wait
                assert parts == pytest.approx(expert.times.seconds)
                ways = [link.way for link in expert.times.links]
                assert ways == (["up"] if expert.stage == STAGES - 1 else ["down", "up"])
            await asyncio.sleep(0.25)  # Virtual: the monitor asks again.
        lines = [json.loads(line) for line in (tmp_path / "logs" / "sim" / "metrics.jsonl").read_text().splitlines()]
        hops = [line for line in lines if line["kind"] == "hop"]
        assert {line["stage"] for line in hops} == {"trainer", "mlp/0", "mlp/1", "mlp/2"}
        assert all(line["bytes"] > 0 for line in hops)

    run_virtual(scenario(), debug=False)


def check(tree: dict[str, Any], step: int) -> None:
    """All microbatches are there, the devices do one thing at a time, and no stage is ahead of the one before."""
    events = [event for event in tree["traceEvents"] if event["ph"] == "X" and event["args"]["step"] == step]
    compute = [
        sorted(
            (event for event in events if event["pid"] == stage + 1 and event["cat"] == "compute"),
            key=lambda event: event["ts"],
        )
        for stage in range(STAGES)
    ]
    slack = 2e6 * max(clock["error"] for clock in tree["otherData"]["clocks"].values())
    for stage, row in enumerate(compute):
        assert all(first["ts"] + first["dur"] <= second["ts"] + 0.01 for first, second in pairwise(row))
        kinds = ("loss",) if stage == STAGES - 1 else ("forward", "backward")
        for kind in kinds:
            assert [event["args"]["index"] for event in row if event["name"] == kind] == list(range(MICROBATCHES))
        assert [event["name"] for event in row if event["name"] != "wait"][-1] == "commit"
    for above, below in pairwise(compute):
        for index in range(MICROBATCHES):
            first, second = (
                next(e for e in row if e["name"] in ("forward", "loss") and e["args"]["index"] == index)
                for row in (above, below)
            )
            assert first["ts"] + first["dur"] <= second["ts"] + slack
