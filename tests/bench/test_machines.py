"""Namespaces are made throttled at both ends of each cable, and nothing of them is left; `ip` and `tc` are played."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bench import machines
from bench.machines import HERE, MachinesError, open_loopback, open_machines
from tests.support import run

DEAD = 4194304
"""No process has this id: Linux gives smaller ones only."""


class Network:
    """Keeps the namespaces of a folder, as `ip netns` does, and what else was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[tuple[str, ...]] = []
        self.fails_at: str | None = None  # A word of the command that fails; None: none does.

    def run(self, *command: str) -> str:
        self.commands.append(command)
        if self.fails_at is not None and self.fails_at in command:
            raise MachinesError("played")
        match command:
            case ("ip", "netns", "add", name):
                (self.folder / name).touch()
            case ("ip", "netns", "delete", name):
                (self.folder / name).unlink()
        return ""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network(tmp_path)
    monkeypatch.setattr(machines, "NAMESPACES", tmp_path)
    monkeypatch.setattr(machines, "_run", network.run)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return network


def test_both_ends_of_every_cable_are_throttled(network: Network) -> None:
    async def scenario() -> None:
        async with open_machines(2, 100e6) as found:
            assert [machine.host for machine in found] == ["10.86.0.1", "10.86.0.2"]
            assert {machine.namespace for machine in found} <= {path.name for path in network.folder.iterdir()}

    run(scenario())
    shaped = [command for command in network.commands if command[0] == "tc"]
    assert all("100000000bit" in command and "tbf" in command for command in shaped)
    hub, first, second = (f"distqat-{os.getpid()}-{which}" for which in ("hub", "0", "1"))
    ends = [(command[2], command[command.index("dev") + 1]) for command in shaped]
    assert ends == [(hub, "port0"), (first, "eth0"), (hub, "port1"), (second, "eth0")]


@pytest.mark.parametrize("fails_at", [None, "tbf", "bridge", "peer"])
def test_nothing_is_left_whatever_happens(network: Network, fails_at: str | None) -> None:
    network.fails_at = fails_at

    async def scenario() -> None:
        async with open_machines(2, 1e6):
            assert len(list(network.folder.iterdir())) == 3
            raise MachinesError("played")

    with pytest.raises(MachinesError, match="played"):
        run(scenario())
    assert list(network.folder.iterdir()) == []


def test_what_a_killed_bench_has_left_is_removed_and_a_running_one_is_not(network: Network) -> None:
    for name in (f"distqat-{DEAD}-hub", f"distqat-{DEAD}-0", "distqat-1-hub", "other"):
        (network.folder / name).touch()

    async def scenario() -> None:
        async with open_machines(1, 1e6):
            pass

    run(scenario())
    assert sorted(path.name for path in network.folder.iterdir()) == ["distqat-1-hub", "other"]


def test_a_loopback_of_its_own_is_left_to_nobody(network: Network) -> None:
    async def scenario() -> None:
        async with open_loopback() as machine:
            assert (machine.host, machine.interface) == (HERE.host, HERE.interface)
            assert [path.name for path in network.folder.iterdir()] == [machine.namespace]
            raise MachinesError("played")

    with pytest.raises(MachinesError, match="played"):
        run(scenario())
    assert list(network.folder.iterdir()) == []


def test_without_root_loopback_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    async def scenario() -> None:
        async with open_loopback() as machine:
            assert machine is HERE

    run(scenario())


def test_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    async def scenario() -> None:
        async with open_machines(2, 1e6):
            pass

    with pytest.raises(MachinesError, match="need root"):
        run(scenario())


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(MachinesError, match="no 'ip-of-nobody' here"):
        machines._run("ip-of-nobody")


def test_bytes_that_leave_are_counted_by_the_interface() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((HERE.host, 0))
        before = HERE.sent()
        receiver.sendto(bytes(10_000), receiver.getsockname())
        assert len(receiver.recv(10_001)) == 10_000
    assert HERE.sent() - before >= 10_000
