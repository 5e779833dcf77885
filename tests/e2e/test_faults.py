"""Real signals: what is killed is noticed and named, and the rest goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.e2e.swarm import Swarm, ctl, open_swarm, pipelines, seated, steps, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_kill_of_the_monitor_stops_nothing_and_kill_of_an_expert_is_reported(tmp_path: Path) -> None:
    # One stage and two pipelines, so that three experts are two siblings and a spare.
    with open_swarm(tmp_path, **{"model.stages": "1", "plan.max_pipelines": "2"}) as swarm:
        monitor, entry = swarm.head("monitor", "monitor")
        _, client = swarm.head("client", "client", join=entry)
        experts = [swarm.expert(f"expert-{n}", entry) for n in range(3)]
        swarm.wait_status(client, lambda s: len(pipelines(s)) == 2 and steps(s) > 10, "two pipelines")

        monitor.process.send_signal(signal.SIGKILL)
        monitor.process.wait()
        before = steps(swarm.status(client))
        swarm.wait_status(client, lambda s: len(pipelines(s)) == 2 and steps(s) > before + 20, "steps without it")

        # The monitor comes back and goes on with its file, in which each metric still has one line.
        metrics = tmp_path / "e2e" / "metrics.jsonl"
        size = metrics.stat().st_size
        swarm.head("monitor", "monitor", join=client)
        wait_for(lambda: metrics.stat().st_size > size, "metrics after the return")
        keys = [(row["peer"], row["serial"]) for row in map(json.loads, metrics.read_text().splitlines())]
        assert len(keys) == len(set(keys))

        status = swarm.wait_status(client, lambda s: len(seated(s)) == 2 and len(s["peers"]) == 5, "all peers")
        victim = next(e for e in experts if swarm.peer(status, e) in seated(status))
        name = swarm.peer(status, victim)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        told = swarm.wait_status(
            client, lambda s: any(loss["peer"] == name for loss in s["run"]["losses"]), "the loss to be reported"
        )
        loss = next(loss for loss in told["run"]["losses"] if loss["peer"] == name)
        assert loss["kind"] in ("GoneError", "UnreachableError")
        assert loss["reason"]

        # The spare takes the seat with the sibling's state, and contributes to its rounds.
        again = swarm.wait_status(
            client, lambda s: len(pipelines(s)) == 2 and name not in seated(s), "a pipeline with the spare"
        )
        spare = next(peer for peer in seated(again) if peer not in seated(status))
        swarm.wait_status(
            client,
            lambda s: any(spare in r["contributors"] for e in seated(s).values() for r in e["receipts"]),
            "a round with the spare",
        )

        # Afterwards all daemons together tell how it went, and of the dead one those who lost it.
        rows = [json.loads(line) for line in ctl("events", "--json", "--peer", client).stdout.splitlines()]
        loss = {"kind": "lost", "peer": name, "how": "broken connection"}
        lost = next(place for place, row in enumerate(rows) if row.items() >= loss.items())
        assert any(row["kind"] == "hop broke" and row["peer"] == name for row in rows)
        assert any(row["kind"] == "formed" and spare[:8] in row["text"] for row in rows[lost:])
        why = ctl("why", name[:12], "--peer", client)
        assert (why.returncode, "lost it at" in why.stdout) == (1, True), why.stdout + why.stderr


@pytest.mark.soak
def test_nobody_makes_up_the_state_of_a_stage_that_is_lost(tmp_path: Path) -> None:
    with open_swarm(tmp_path) as swarm:
        _, head = swarm.head("head", "client")
        experts = [swarm.expert(f"expert-{n}", head) for n in range(2)]
        status = swarm.wait_status(head, lambda s: pipelines(s) and steps(s) > 10, "the first pipeline")
        victim = next(e for e in experts if seated(status)[swarm.peer(status, e)]["stage"] == 1)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        swarm.start("newcomer", "--join", head)
        why = "the run has committed rounds, and nobody holds mlp/1"
        waiting = swarm.wait_status(
            head, lambda s: any(why in r["reason"] for p in s["peers"] for r in p["roles"]), "the newcomer to say why"
        )
        assert not waiting["healthy"]
        assert not pipelines(waiting)


@pytest.mark.soak
def test_a_run_whose_daemons_were_all_killed_is_not_begun_anew(tmp_path: Path) -> None:
    """What they held is lost; they remember that it was there, and wait for it."""

    def begin(swarm: Swarm) -> str:
        for note in tmp_path.glob("states/*/peer-0/daemon.json"):
            note.unlink()
        _, head = swarm.head("head", "client")
        for number in range(2):
            swarm.expert(f"expert-{number}", head)
        return head

    with open_swarm(tmp_path) as swarm:
        head = begin(swarm)
        swarm.wait_status(
            head, lambda s: pipelines(s) and all(e["round"] > 2 for e in seated(s).values()), "rounds of both stages"
        )
    why = "the run has committed rounds, and nobody holds mlp/"
    with open_swarm(tmp_path) as swarm:
        head = begin(swarm)
        waiting = swarm.wait_status(
            head, lambda s: sum(why in r["reason"] for p in s["peers"] for r in p["roles"]) == 2, "both to say why"
        )
        assert not pipelines(waiting)
