"""The peer through which all came in, and whoever leads the next round, are killed one after the other."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from distqat.averaging import rendezvous
from distqat.averaging.group import RoundRef
from distqat.cli.daemons import Daemon
from distqat.ids import PeerId, RunId, StageIndex
from tests.e2e.digests import Digests
from tests.e2e.swarm import Status, Swarm, open_swarm, pipelines, seated, steps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def next_leader(status: Status) -> PeerId:
    """Who is asked first to lead the next round of stage 0."""
    run = next(peer["run"] for peer in status["peers"] if peer["run"] is not None)
    number = max(expert["round"] for expert in seated(status).values())
    ref = RoundRef(RunId(run["name"], run["digest"]), StageIndex(0), number)
    return rendezvous.order(ref, [PeerId(peer) for peer in seated(status)])[0]


def kill(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()


def trains_on(swarm: Swarm, head: str, before: Status, what: str) -> Status:
    """Two pipelines, steps and rounds after that status."""
    most = max(expert["round"] for expert in seated(before).values())
    status = swarm.wait_status(
        head,
        lambda s: len(pipelines(s)) == 2 <= len(seated(s)) and all(e["round"] > most + 1 for e in seated(s).values()),
        what,
    )
    assert steps(status) > steps(before)
    assert (status["run"]["lost"], status["run"]["doubled"]) == (0, 0)
    return status


def test_the_swarm_outlives_the_leader_of_its_round_and_the_peer_that_all_came_through(tmp_path: Path) -> None:
    # Rounds are far enough apart for a look to show who leads the next one.
    changes = {"model.stages": "1", "plan.max_pipelines": "2", "sync.inner_steps": "40"}
    with open_swarm(tmp_path, **changes) as swarm:
        entry = swarm.start("entry", "--role", "monitor")
        door = swarm.address(entry)
        _, head = swarm.head("head", "client", join=door)
        experts = [swarm.expert(f"expert-{number}", door) for number in range(3)]
        before = swarm.wait_status(
            head,
            lambda s: len(pipelines(s)) == 2 <= len(seated(s)) and min(e["round"] for e in seated(s).values()) > 2,
            "two pipelines",
        )
        digests = Digests()
        digests.look(before)
        leader = next_leader(before)
        kill(next(expert for expert in experts if swarm.peer(before, expert) == leader))
        without = trains_on(swarm, head, before, "rounds without who led them")
        assert leader not in seated(without)
        digests.look(without)

        kill(entry)
        alone = trains_on(swarm, head, without, "rounds without the peer that all came through")
        digests.look(alone)
        # Whoever was in the swarm finds it by itself, and a newcomer through anybody.
        (place,) = [number for number, expert in enumerate(experts) if expert.process.poll() is not None]
        swarm.expert(f"expert-{place}", door)
        swarm.expert("newcomer", head)
        back = swarm.wait_status(head, lambda s: len(reachable(s)) == 5, "who was killed, and a newcomer")
        assert leader in reachable(back)
        digests.look(trains_on(swarm, head, back, "further rounds"))
        digests.check()


def reachable(status: Status) -> set[str]:
    """The peers that answer."""
    return {peer["peer"] for peer in status["peers"] if peer["reachable"]}
