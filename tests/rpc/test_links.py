"""What a transport knows of its host's links, on real ones, and how bulk is paced by that."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import ExitStack

import pytest

from bench.machines import Machine, open_machines
from distqat.rpc.links import Links
from distqat.rpc.pacing import Flow
from distqat.rpc.transport import Lane, Method
from tests.contract.worlds import NAME, SINK, soon
from tests.namespaces import needs_namespaces, python_on, read_line
from tests.rpc.test_grpc import open_pair
from tests.support import run, run_virtual

RATE = 1.25e6
"""10 Mbit/s."""

HEADERS = 0.96
"""What TCP and IP leave of it."""


@pytest.mark.e2e
@needs_namespaces
def test_a_slow_uplink_is_measured_and_then_not_filled() -> None:
    async def scenario() -> list[dict[str, float]]:
        async with open_machines(3, 8 * RATE) as [source, *targets]:
            with ExitStack() as stack:

                def start(machine: Machine, *arguments: str) -> subprocess.Popen[str]:
                    return stack.enter_context(python_on(machine, "tests.rpc.shovel", *arguments))

                servers = [start(target, "serve", target.host) for target in targets]
                for server in servers:
                    read_line(server)
                client = start(source, "send", str(2 << 20), *(target.host for target in targets))
                found = [await asyncio.to_thread(read_line, client) for _ in range(2)]
                # It takes half of what is sent, and says at each echo what it has seen of that.
                downlinks = [read_line(servers[0])["downlink"] for _ in range(30)]
                assert 0.3 * RATE < max(downlinks) < 1.2 * RATE
            return found

    unknown, paced = run(scenario(), timeout=60)
    assert unknown["uplink"] == pytest.approx(HEADERS * RATE, rel=0.1)
    assert paced["uplink"] == pytest.approx(HEADERS * RATE, rel=0.15)
    assert 0.75 * RATE < paced["rate"] < 0.96 * RATE
    assert paced["slowest"] < 1.0


def test_what_stays_on_this_host_is_neither_looked_at_nor_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Lane] = []

    async def main() -> None:
        async with open_pair() as pair:
            monkeypatch.setattr(Links, "_move", lambda self: looks.append(Lane.BULK))
            async with pair.alice.stream(pair.to, Method(NAME, SINK.name, Lane.BULK)) as stream:
                await stream.send(bytes([1]) * (1 << 20))
                await soon(pair.trial.started)
            assert pair.alice.uplink() == pair.alice.downlink() == 0.0

    run(main())
    assert not looks


def test_control_never_waits_and_hops_go_before_bulk() -> None:
    async def main() -> None:
        links, loop = Links(), asyncio.get_running_loop()
        links._pacer.rate = 1e6
        await links.leave("far", Lane.BULK, 1_000_000)
        began = loop.time()
        for lane in (Lane.CONTROL, Lane.HOP):
            await links.leave("far", lane, 1_000_000)
        assert loop.time() == began
        await links.leave("far", Lane.BULK, 1)
        assert 1.5 < loop.time() - began < 1.9
        assert repr(links) == "<Links <Gauge up 0.0, down 0.0 MB/s>, bulk paced to 1.0 MB/s>"

    run_virtual(main())


def test_nobody_looks_while_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        links, looks = Links(), list[float]()
        loop = asyncio.get_running_loop()

        def look() -> dict[int, Flow]:
            looks.append(loop.time())
            return {}

        monkeypatch.setattr(links._sockets, "look", look)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(links.watch())
            await asyncio.sleep(100.0)
            assert not looks
            await links.leave("far", Lane.BULK, 1)
            await asyncio.sleep(100.0)
            assert 8 <= len(looks) <= 12
            links.came(Lane.CONTROL)
            await asyncio.sleep(100.0)
            assert len(looks) <= 12
            watching.cancel()

    run_virtual(main())
