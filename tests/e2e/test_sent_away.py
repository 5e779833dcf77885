"""Daemons that the swarm cannot have end by themselves, with an exit code that says why: systemd leaves them alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random, SystemRandom

import pytest

from distqat.discovery.node import DhtNode
from distqat.discovery.signing import SigningKey
from distqat.ids import Endpoint
from distqat.rpc import headers
from distqat.rpc.grpc import open_transport
from tests.e2e.swarm import daemon_command, open_swarm
from tests.support import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def newcomer(folder: Path, join: str) -> tuple[str, ...]:
    """The arguments of a daemon with a state folder of its own."""
    own = {"daemon.state_dir": str(folder / "newcomer"), "daemon.log_dir": str(folder)}
    settings = [part for key, value in own.items() for part in ("--set", f"{key}={value}")]
    return ("--role", "monitor", "--join", join, "--listen", "127.0.0.1:0", *settings)


def test_a_copied_key_is_named_though_the_twins_meet_through_another(tmp_path: Path) -> None:
    with open_swarm(tmp_path) as swarm:
        _, door = swarm.head("head", "monitor")
        first = swarm.start("first", "--role", "monitor", "--join", door)
        address = swarm.address(first)
        swarm.wait_status(door, lambda s: len(s["peers"]) == 2, "the first of them")
        copied = tmp_path / "newcomer" / "peer-0" / "key"
        copied.parent.mkdir(parents=True)
        copied.write_bytes((tmp_path / "states" / "first" / "peer-0" / "key").read_bytes())
        done = daemon_command(*newcomer(tmp_path, door))
        assert done.returncode == 66
        assert f"the daemon at {address} has the same key" in done.stderr
        # Whoever was there first stays.
        swarm.wait_status(door, lambda s: all(peer["reachable"] for peer in s["peers"]), "the first to be as before")
        assert first.process.poll() is None


def test_a_daemon_whose_version_nobody_speaks_says_so_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "PROTOCOL_VERSION", 99)

    async def scenario() -> None:
        key = SigningKey.generate(SystemRandom())
        async with (
            open_transport() as transport,
            transport.serve(Endpoint("127.0.0.1", 0)) as server,
            DhtNode.open(transport, key, server.endpoint, 1, Random(1)) as dht,
        ):
            server.add(dht.service)
            done = await asyncio.to_thread(daemon_command, *newcomer(tmp_path, str(server.endpoint)))
            assert done.returncode == 67
            assert "speaks version 99" in done.stderr

    run(scenario(), timeout=90.0)
