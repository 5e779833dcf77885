"""Machines behind links of a chosen rate: network namespaces on one switch, their cables throttled by `tc tbf`.

Each has a cable of its own, so it sends and receives at the rate; a byte passes two of them. Making them needs root.
Names begin with the process id; what a killed bench has left is removed by the next one.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

PREFIX = "distqat"
NAMESPACES = Path("/run/netns")
NEW_NETWORK = 0x40000000
"""CLONE_NEWNET."""

QUEUE_SECONDS = 0.05
"""Longest wait in a cable's queue; what comes then is dropped."""

BURST_SECONDS = 0.01
MIN_BURST = 128 << 10
"""Bytes that go at once after a pause; a smaller burst would not reach the higher rates."""


class MachinesError(RuntimeError):
    """There can be no such machines here; the message says what to do."""


@dataclass(frozen=True)
class Machine:
    """Where a process of a bench runs."""

    host: str
    interface: str
    namespace: str | None
    """None: where the bench itself runs."""

    def sent(self) -> int:
        """Bytes that have left through its interface so far, with all that TCP and IP add."""
        if self.namespace is None:
            table = Path("/proc/net/dev").read_text()
        else:
            table = _run("ip", "netns", "exec", self.namespace, "cat", "/proc/net/dev")
        fields = next(line for line in table.splitlines() if line.strip().startswith(f"{self.interface}:"))
        return int(fields.split(":")[1].split()[8])


HERE = Machine("127.0.0.1", "lo", None)
"""This one, without namespaces: neighbours reach each other through loopback."""


@asynccontextmanager
async def open_machines(number: int, rate: float) -> AsyncIterator[list[Machine]]:
    """So many, each with a cable of `rate` bits per second; nothing of them is left at the end.

    Raises MachinesError.
    """
    if os.geteuid() != 0:
        raise MachinesError("network namespaces need root: run it with sudo, or leave this bench out")
    await asyncio.to_thread(_remove_left_over)
    try:
        yield await asyncio.to_thread(_make, number, rate)
    finally:
        await asyncio.to_thread(_remove, os.getpid())


@asynccontextmanager
async def open_loopback() -> AsyncIterator[Machine]:
    """A machine whose loopback nobody else uses, so that what it counts is ours; without root, this one."""
    if os.geteuid() != 0:
        yield HERE
        return
    await asyncio.to_thread(_remove_left_over)
    try:
        name = _name(os.getpid(), "alone")
        await asyncio.to_thread(_run, "ip", "netns", "add", name)
        await asyncio.to_thread(_run, "ip", "-n", name, "link", "set", "lo", "up")
        yield replace(HERE, namespace=name)
    finally:
        await asyncio.to_thread(_remove, os.getpid())


def enter(namespace: str) -> None:
    """From here on this thread, and what it starts, is on that machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (NAMESPACES / namespace).open() as file:
        if libc.setns(file.fileno(), NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")


def _make(number: int, rate: float) -> list[Machine]:
    hub = _name(os.getpid(), "hub")
    _run("ip", "netns", "add", hub)
    _run("ip", "-n", hub, "link", "add", "switch", "type", "bridge")
    _run("ip", "-n", hub, "link", "set", "switch", "up")
    return [_connect(hub, index, rate) for index in range(number)]


def _connect(hub: str, index: int, rate: float) -> Machine:
    """A machine with a cable to the switch; both ends are throttled, so both directions are."""
    name, port, host = _name(os.getpid(), str(index)), f"port{index}", f"10.86.0.{index + 1}"
    _run("ip", "netns", "add", name)
    cable = ("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
    _run("ip", "-n", hub, *cable)
    _run("ip", "-n", hub, "link", "set", port, "master", "switch", "up")
    _run("ip", "-n", name, "address", "add", f"{host}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _run("ip", "-n", name, "link", "set", device, "up")
    burst = max(MIN_BURST, int(rate / 8 * BURST_SECONDS))
    shape = ("root", "tbf", "rate", f"{rate:.0f}bit", "burst", str(burst), "latency", f"{QUEUE_SECONDS * 1e3:.0f}ms")
    _run("tc", "-n", hub, "qdisc", "add", "dev", port, *shape)
    _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", *shape)
    return Machine(host, "eth0", name)


def _remove(pid: int | str) -> None:
    for path in NAMESPACES.glob(_name(pid, "*")):
        _run("ip", "netns", "delete", path.name)


def _remove_left_over() -> None:
    for pid in {path.name.split("-")[1] for path in NAMESPACES.glob(_name("*", "*"))}:
        if not Path(f"/proc/{pid}").exists():
            _remove(pid)


def _name(pid: int | str, which: str) -> str:
    return f"{PREFIX}-{pid}-{which}"


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise MachinesError(f"there is no '{command[0]}' here; it comes with iproute2") from None
    except subprocess.CalledProcessError as error:
        raise MachinesError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from None
