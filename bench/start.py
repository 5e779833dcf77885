"""Seconds until a command has answered, and until a daemon listens and answers; wall time and CPU time."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.case import Case, Goal, Line, interleave
from distqat.cli.daemons import start_daemon
from distqat.cli.nursery.process import Process
from distqat.errors import RpcError
from distqat.ids import Endpoint
from distqat.peer.identity import running_endpoints
from distqat.roles.remote import Remote
from distqat.rpc.grpc import open_transport

HELP = [sys.executable, "-m", "distqat.cli.distqatctl", "--help"]
COMMAND_IMPORTS = "import typer, rich"
DAEMON_IMPORTS = "import typer, rich, pydantic_settings, uvloop, grpc.aio, kademlia"
GOAL = Goal("value", 0.5)
RUNS = 15
QUICK_RUNS = 3
PATIENCE = 60.0
LOOK = 0.005


@dataclass(frozen=True)
class Took:
    """Seconds."""

    wall: float
    cpu: float


async def bench(quick: bool) -> AsyncIterator[Line]:
    """The command's help and a monitor, each beside a bare interpreter that imports the same libraries."""
    runs = QUICK_RUNS if quick else RUNS
    ours, peers = await interleave(runs, lambda: _command(HELP), lambda: _imports(COMMAND_IMPORTS))
    for line in _lines("distqatctl --help", COMMAND_IMPORTS, ours, peers):
        yield line
    ours, peers = await interleave(runs, _monitor, lambda: _imports(DAEMON_IMPORTS))
    for line in _lines("monitor says hello", DAEMON_IMPORTS, ours, peers):
        yield line


def _lines(name: str, peer: str, ours: list[Took], peers: list[Took]) -> list[Line]:
    wall = Case("start", name, "s", "lower", f"python: {peer}", GOAL)
    cpu = Case("start", f"{name}, CPU", "s", "lower", f"python: {peer}", GOAL)
    return [
        wall.line([took.wall for took in ours], [took.wall for took in peers]),
        cpu.line([took.cpu for took in ours], [took.cpu for took in peers]),
    ]


async def _imports(code: str) -> Took:
    return await _command([sys.executable, "-c", code])


async def _command(command: list[str]) -> Took:
    """Run it to its end; no other child of this process ends meanwhile."""

    def work() -> Took:
        before, began = _children_cpu(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "100"})
        return Took(time.perf_counter() - began, _children_cpu() - before)

    return await asyncio.to_thread(work)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def _monitor() -> Took:
    """Start a monitor and ask who it is as soon as it has said where it listens."""
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        daemon = start_daemon("monitor", folder, ["--role", "monitor"])
        try:
            async with open_transport() as transport, asyncio.timeout(PATIENCE):
                endpoint = await _endpoint(folder / "states" / "monitor", daemon.process)
                await Remote(transport, endpoint).hello()
            wall = time.perf_counter() - began
            times = psutil.Process(daemon.process.pid).cpu_times()
            return Took(wall, times.user + times.system)
        finally:
            daemon.process.kill()
            daemon.process.wait()


async def _endpoint(state_dir: Path, process: Process) -> Endpoint:
    """Where the only daemon of this folder listens."""
    while not (running := running_endpoints(state_dir)):
        if process.poll() is not None:
            raise RpcError(f"the monitor ended with exit code {process.returncode}")
        await asyncio.sleep(LOOK)
    return running[0]
