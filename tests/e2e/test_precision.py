"""Few bits, and links that break: real daemons end where they should, and count every sample once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from distqat.cli.daemons import Daemon
from distqat.ids import Endpoint
from tests.e2e.swarm import Status, Swarm, experts, open_swarm, pipelines, wait_for
from tests.proxy import Proxy, Shape, open_proxies

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(240)]

DIGITS = {
    "data.batch": "64",
    "train.epochs": "6",
    "sync.warmup_steps": "5",
    "sync.inner_steps": "10",
    "optimizer.clip_norm": "1.0",
}
"""The whole run of digits, short."""


def metrics(swarm: Swarm, kind: str) -> list[Status]:
    """The metric lines of a kind; a look at the file costs less than asking a daemon, which these tests share the
    cores with."""
    file = swarm.folder / "e2e" / "metrics.jsonl"
    # The last line may be half written.
    lines = map(json.loads, file.read_text().split("\n")[:-1]) if file.exists() else []
    return [line for line in lines if line["kind"] == kind]


def wait_end(swarm: Swarm, head: str, num_pipelines: int) -> Status:
    """The status at the end of the run, every pipeline's last evaluation done."""
    wait_for(lambda: len(metrics(swarm, "evaluation")) >= num_pipelines, "the last evaluations", 120.0)
    status = swarm.wait_status(head, lambda s: len(pipelines(s, "finished")) == num_pipelines, "the end of the run")
    run = status["run"]
    assert (run["lost"], run["doubled"]) == (0, 0)
    assert run["committed"] == run["budget"]
    for line in pipelines(status, "finished"):
        # One image in ten is guessed right, and the whole run of 12 epochs in fp32 comes to 0.97.
        assert line["evaluation"] > 0.85, line
    return status


def test_int8_bf16_and_clipping_end_with_equal_anchors_and_a_good_model(tmp_path: Path) -> None:
    few = {"wire.activations": "int8", "wire.gradients": "int8", "train.precision": "bf16"}
    with open_swarm(tmp_path, **DIGITS, **few) as swarm:
        _, head = swarm.head("head", "monitor", "client")
        for number in range(4):
            swarm.expert(f"expert-{number}", head)
        status = wait_end(swarm, head, 2)
        ends = {(expert["stage"], expert["round"], expert["digest"]) for expert in experts(status)}
        assert len(experts(status)) == 4
        assert len(ends) == 2
        # The stages speak of two bytes an element, and send little more than one.
        lines = [line for line in metrics(swarm, "hop") if line["stage"] == "mlp/1"]
        assert lines
        assert all(0.5 < line["bytes"] / line["raw"] < 0.55 for line in lines)


class Links:
    """Proxies that live in a thread of their own, since these tests block."""

    def __init__(self, loop: asyncio.AbstractEventLoop, proxies: list[Proxy]) -> None:
        self.proxies = proxies
        self._loop = loop

    def lead(self, index: int, to: Endpoint) -> None:
        """What connects from now on is carried there."""
        self.proxies[index].to = to

    def cut(self, index: int) -> None:
        """Reset all connections of one link."""
        self._loop.call_soon_threadsafe(self.proxies[index].cut)


@contextmanager
def open_links(count: int, shape: Shape) -> Iterator[Links]:
    """Links that lead nowhere yet."""
    ready: Future[tuple[Links, asyncio.Event]] = Future()

    async def serve() -> None:
        async with open_proxies([Endpoint("127.0.0.1", 1)] * count, shape) as proxies:
            leave = asyncio.Event()
            ready.set_result((Links(asyncio.get_running_loop(), proxies), leave))
            await leave.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    links, leave = ready.result(timeout=10.0)
    try:
        yield links
    finally:
        links._loop.call_soon_threadsafe(leave.set)
        thread.join()


def listening(daemon: Daemon) -> Endpoint | None:
    """Where it listens in truth, whatever it announces."""
    found = psutil.Process(daemon.process.pid).net_connections("tcp")
    ports = [line.laddr.port for line in found if line.status == psutil.CONN_LISTEN]
    return Endpoint("127.0.0.1", ports[0]) if ports else None


def test_fp16_over_slow_links_that_break_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    settings = {**DIGITS, "train.precision": "fp16", "wire.activations": "int8"}
    with open_links(2, Shape(delay=0.005)) as links, open_swarm(tmp_path, **settings) as swarm:
        _, head = swarm.head("head", "monitor", "client")
        for number, link in enumerate(links.proxies):
            expert = swarm.expert(f"expert-{number}", head, "--set", f"daemon.announce={link.endpoint}")
            links.lead(number, wait_for(partial(listening, expert), "the expert to listen"))
        for count, index in enumerate((0, 1, 0, 1), 1):
            wait_steps(swarm, 20 * count)
            links.cut(index)
        status = wait_end(swarm, head, 1)
        assert status["pipelines"][0]["replayed"] >= 1
        assert all(link.statistics().cuts == 2 for link in links.proxies)


def wait_steps(swarm: Swarm, count: int) -> None:
    """Until so many are committed."""
    wait_for(lambda: len(metrics(swarm, "step")) >= count, f"{count} steps")
