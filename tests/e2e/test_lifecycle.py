"""A swarm's ordinary life, through the shipped commands: train, join with an address, drop and take roles, drain."""

from __future__ import annotations

from pathlib import Path

import pytest

from distqat.cli.nursery.process import Executing
from tests.e2e.swarm import ctl, experts, open_swarm, pipelines, steps, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_train_join_drop_take_drain(tmp_path: Path) -> None:
    with open_swarm(tmp_path) as swarm:
        swarm.starter = Executing()
        _, head = swarm.head("head", "monitor", "client")
        waiting = swarm.wait_status(head, lambda s: s["run"], "the client")
        assert not waiting["healthy"]
        first = [swarm.expert(f"expert-{n}", head) for n in range(2)]
        training = swarm.wait_status(head, lambda s: s["healthy"] and steps(s) > 10, "the first pipeline")
        assert {e["stage"] for e in experts(training)} == {0, 1}
        assert training["run"]["stages"] == ["mlp/0", "mlp/1"]
        assert ctl("status", "--peer", head).returncode == 0

        # Two newcomers that know an address and nothing else make a second pipeline, with the same anchors.
        swarm.starter = None
        newcomers = [swarm.start(f"newcomer-{n}", "--join", head) for n in range(2)]
        both = swarm.wait_status(head, lambda s: len(pipelines(s)) == 2, "the second pipeline")
        assert len(experts(both)) == 4
        rounds = swarm.wait_status(
            head,
            lambda s: all(len(e["receipts"]) and len(e["receipts"][-1]["contributors"]) == 2 for e in experts(s)),
            "rounds with two contributors",
        )
        digests = {
            (e["stage"], r["round"], r["digest"]) for e in experts(rounds) for r in e["receipts"] if r["contributors"]
        }
        assert len(digests) == len({(stage, number) for stage, number, _ in digests})

        # A role that is dropped is gone from the status, and the rest goes on; taken again, it helps again.
        newcomer = swarm.address(newcomers[0])
        assert "none" in ctl("role", "drop", "expert", "--peer", newcomer).stdout
        dropped = swarm.wait_status(head, lambda s: len(pipelines(s)) == 1 and len(s["pipelines"]) == 1, "one pipeline")
        assert all(peer["reachable"] for peer in dropped["peers"])
        swarm.wait_status(head, lambda s: steps(s) > steps(dropped), "further steps")
        assert "expert" in ctl("role", "add", "expert", "--peer", newcomer).stdout
        swarm.wait_status(head, lambda s: len(pipelines(s)) == 2, "two pipelines again")

        # A drained daemon leaves by itself, with exit code 0 and without a trace of a loss.
        assert ctl("drain", "--peer", swarm.address(first[0])).returncode == 0
        assert wait_for(lambda: first[0].process.poll() is not None, "the drained daemon to leave")
        assert first[0].process.returncode == 0, first[0].output.read_text()
        rest = swarm.wait_status(head, lambda s: len(s["peers"]) == 4 and len(pipelines(s)) == 1, "the rest to regroup")
        assert rest["run"]["lost"] == rest["run"]["doubled"] == 0
        peers = (tmp_path / "e2e" / "initial_peers.txt").read_text().split()
        assert head in peers
        assert (tmp_path / "e2e" / "metrics.jsonl").stat().st_size > 0
