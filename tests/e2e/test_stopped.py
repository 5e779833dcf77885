"""An expert is stopped with SIGSTOP: its connections stay open. It is noticed, replaced, and used again afterwards."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.digests import Digests
from tests.e2e.swarm import Status, Swarm, open_swarm, pipelines, seated, steps, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

LEASE = 3.0

PROMISED = LEASE + 0.5
"""Seconds in which a stopped expert is noticed on a machine that has nothing else to do."""

MARGIN = 15.0
"""Seconds more that a busy one may take."""


def lost_at(folder: Path, peer: str) -> float:
    """When the client lost that peer, on this machine's clock that never goes back."""

    def read() -> float:
        files = folder.glob("e2e/events-*.jsonl")
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return next((row["monotonic"] for row in rows if (row["kind"], row.get("peer")) == ("lost", peer)), 0.0)

    return wait_for(read, f"the loss of {peer}")


def two_without(swarm: Swarm, head: str, victim: str) -> Status:
    """Two pipelines train, and that expert is in neither."""
    return swarm.wait_status(
        head,
        lambda s: len(pipelines(s)) == 2 and victim not in str([line["route"] for line in pipelines(s)]),
        "two pipelines over the others",
    )


def test_a_stopped_expert_is_found_by_its_lease_and_has_no_say_when_it_is_back(tmp_path: Path) -> None:
    changes = {"model.stages": "1", "plan.max_pipelines": "2", "lease.min": str(LEASE), "monitor.interval": "1"}
    with open_swarm(tmp_path, **changes) as swarm:
        _, head = swarm.head("head", "client")
        experts = [swarm.expert(f"expert-{number}", head) for number in range(3)]
        before = swarm.wait_status(head, lambda s: len(pipelines(s)) == 2 and steps(s) > 20, "two pipelines")
        ids = {swarm.peer(before, expert): expert for expert in experts}
        victim, other = list(seated(before))
        (spare,) = ids.keys() - {victim, other}

        began = time.monotonic()
        ids[victim].process.send_signal(signal.SIGSTOP)
        noticed = lost_at(tmp_path, victim) - began
        print(f"noticed after {noticed:.2f} s, promised within {PROMISED} s")
        assert noticed < PROMISED + MARGIN
        digests = Digests()
        without = two_without(swarm, head, victim)
        assert spare in seated(without)
        digests.look(without)
        further = swarm.wait_status(
            head,
            lambda s: min((e["round"] for p, e in seated(s).items() if p != victim), default=0) > rounds(without) + 1,
            "rounds without it",
        )
        digests.look(further)
        alone = rounds(further)

        # What it holds is of a round that the others have left; it comes to theirs before it is asked again.
        ids[victim].process.send_signal(signal.SIGCONT)
        digests.look(swarm.wait_status(head, lambda s: victim in able(s), "it to be back"))
        ids[other].process.send_signal(signal.SIGKILL)
        ids[other].process.wait()
        again = swarm.wait_status(
            head,
            lambda s: len(pipelines(s)) == 2 and victim in str([line["route"] for line in pipelines(s)]),
            "a pipeline through the expert that was stopped",
        )
        digests.look(again)
        last = swarm.wait_status(
            head,
            lambda s: (
                victim in seated(s)
                and any(r["round"] > alone and victim in r["contributors"] for r in seated(s)[victim]["receipts"])
            ),
            "a round with it",
        )
        digests.look(last)
        digests.check()
        assert (last["run"]["lost"], last["run"]["doubled"]) == (0, 0)


def rounds(status: Status) -> int:
    """The most that any expert has committed."""
    return max(int(expert["round"]) for expert in seated(status).values())


def able(status: Status) -> set[str]:
    """Experts that could take a place in a pipeline now: they hold what is committed."""
    return {
        peer["peer"]
        for peer in status["peers"]
        if peer["reachable"]
        for role in peer["roles"]
        if role["expert"] is not None and (role["expert"]["ready"] or role["expert"]["warm"])
    }
