"""A swarm of real daemons whose samples come from the data server, which is killed, and then its client is."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from distqat.data.server.blocks import leftovers
from tests.e2e.swarm import ctl, open_swarm, pipelines, steps, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def server_of(pid: int) -> psutil.Process | None:
    """The data server that this daemon has started."""
    children = psutil.Process(pid).children()
    return next((child for child in children if "distqat.data.server" in child.cmdline()), None)


def test_training_outlives_the_data_server_and_that_does_not_outlive_its_client(tmp_path: Path) -> None:
    before = leftovers()
    with open_swarm(tmp_path, **{"data.server": "on", "model.stages": "1"}) as swarm:
        head, address = swarm.head("head", "client", "monitor")
        swarm.expert("expert", address)
        status = swarm.wait_status(address, lambda s: pipelines(s) and steps(s) > 20, "training")
        reasons = [role["reason"] for peer in status["peers"] for role in peer["roles"] if role["role"] == "client"]
        assert "data server serving: 1438 samples" in reasons[0]
        shown = " ".join(ctl("status", "--peer", address).stdout.split())
        assert "data server serving" in shown

        first = wait_for(lambda: server_of(head.process.pid), "the data server")
        mine = [name for name in leftovers() if f"-{first.pid}-" in name]
        assert mine
        first.send_signal(signal.SIGKILL)
        done = steps(swarm.status(address))
        second = swarm.wait_status(address, lambda s: pipelines(s) and steps(s) > done + 30, "training to go on")
        run = next(role["run"] for peer in second["peers"] for role in peer["roles"] if role["run"] is not None)
        assert (run["lost"], run["doubled"]) == (0, 0)
        assert not set(mine) & set(leftovers())
        events = [
            json.loads(line) for file in tmp_path.rglob("events-*.jsonl") for line in file.read_text().splitlines()
        ]
        assert [event["kind"] for event in events].count("data server restarted") == 1

        server = wait_for(lambda: server_of(head.process.pid), "the next data server")
        workers = server.children()
        os.kill(head.process.pid, signal.SIGKILL)
        head.process.wait()
        psutil.wait_procs([server, *workers], timeout=60)
        assert not server.is_running()
        wait_for(lambda: not set(leftovers()) - set(before), "the shared memory to be gone")
