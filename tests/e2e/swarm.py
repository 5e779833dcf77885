"""Real daemons for tests: started through the shipped command, asked as the shipped command asks, killed by pid."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from distqat.cli import show
from distqat.cli.asking import ask
from distqat.cli.daemons import Daemon, start_daemon
from distqat.cli.nursery.nursery import open_nursery
from distqat.cli.nursery.process import Birth, Executing, Starter

T = TypeVar("T")
Status = dict[str, Any]

PATIENCE = 100.0
"""Seconds for a condition to come true; torch takes its time to start on two busy cores."""

ASK_SECONDS = 30.0
"""For an answer."""

SMALL = {
    "run.name": "e2e",
    "model.name": "mlp",
    "data.batch": "16",
    "train.epochs": "1000",
    "sync.warmup_steps": "2",
    "sync.inner_steps": "5",
    "lease.min": "2",
}
"""A model that steps fast and a budget that outlasts any test."""


@cache
def nursery() -> Starter:
    """That of all tests of this process: torch is read once, not by each daemon of each test."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(open_nursery())


class Swarm:
    """The daemons of one test."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.starter: Starter | None = None  # None: that of all tests.
        self.daemons: list[Daemon] = []

    def start(self, name: str, *arguments: str) -> Daemon:
        """Start a daemon; its output is in `folder/<name>.out`."""
        daemon = start_daemon(name, self.folder, arguments, starter=self.starter or nursery())
        self.daemons.append(daemon)
        return daemon

    def head(self, name: str, *roles: str, join: str = "") -> tuple[Daemon, str]:
        """Start a daemon that brings the run, and wait for its address."""
        chosen = [part for key, value in self.settings.items() for part in ("--set", f"{key}={value}")]
        held = [part for role in roles for part in ("--role", role)]
        daemon = self.start(name, *held, *chosen, *(["--join", join] if join else []))
        return daemon, self.address(daemon)

    def expert(self, name: str, join: str, *arguments: str) -> Daemon:
        """Start an expert that knows nothing but an address."""
        return self.start(name, "--role", "expert", "--join", join, *arguments)

    def address(self, daemon: Daemon) -> str:
        """Where a daemon answers, from the note that it leaves for distqatctl."""
        note = self.folder / "states" / daemon.name / "peer-0" / "daemon.json"

        def read() -> str:
            assert daemon.process.poll() is None, daemon.output.read_text()
            return str(json.loads(note.read_text())["endpoint"]) if note.exists() and note.read_text() else ""

        return wait_for(read, f"{daemon.name} to listen")

    def status(self, address: str) -> Status:
        """What `distqatctl status --json` says, without the process: starting one for each look would keep a core."""
        swarm = ask(address, self.folder, lambda remote: remote.swarm(), ASK_SECONDS)
        return dict(json.loads(show.as_json(swarm)))

    def wait_status(self, address: str, condition: Callable[[Status], object], what: str) -> Status:
        """Ask until the status fulfils the condition."""
        last: list[Status] = []

        def look() -> Status | None:
            last[:] = [self.status(address)]
            return last[0] if condition(last[0]) else None

        try:
            return wait_for(look, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; last status: {json.dumps(last, indent=1)[:6000]}") from None

    def peer(self, status: Status, daemon: Daemon) -> str:
        """The id of a daemon, as the status knows it."""
        address = self.address(daemon)
        ids = {f"{peer['endpoint']['host']}:{peer['endpoint']['port']}": peer["peer"] for peer in status["peers"]}
        return str(ids[address])

    def stop(self) -> None:
        """Kill whatever still runs, by pid."""
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                os.kill(daemon.process.pid, signal.SIGKILL)
            daemon.process.wait()


@contextmanager
def open_swarm(folder: Path, **changes: str) -> Iterator[Swarm]:
    """A swarm of no daemons yet; all that are started in it are gone at the end."""
    swarm = Swarm(folder, {**SMALL, **changes})
    try:
        yield swarm
    finally:
        swarm.stop()


def ctl(*arguments: str, timeout: float = 100.0) -> subprocess.CompletedProcess[str]:
    """Run `distqatctl`."""
    command = [sys.executable, "-m", "distqat.cli.distqatctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def daemon_command(*arguments: str, executes: bool = False, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `distqatd` to its end."""
    starter = Executing() if executes else nursery()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = starter.start(Birth(arguments, said.fileno(), complained.fileno()))
        code = process.wait(timeout)
        said.seek(0)
        complained.seek(0)
        return subprocess.CompletedProcess(arguments, code, said.read(), complained.read())


def wait_for(look: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """Look until there is something; fails with a message."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        pause()
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


def pause() -> None:
    """Between two looks at another process there is no event to wait for."""
    signal.sigtimedwait([], 0.2)


def pipelines(status: Status, phase: str = "training") -> Sequence[Status]:
    """The pipelines in that phase."""
    return [line for line in status["pipelines"] if line["phase"] == phase]


def seated(status: Status) -> dict[str, Status]:
    """The facts of every expert that has a stage, by peer."""
    return {
        peer["peer"]: role["expert"]
        for peer in status["peers"]
        for role in peer["roles"]
        if role["expert"] is not None and role["expert"]["seated"]
    }


def experts(status: Status) -> list[Status]:
    """The same without names."""
    return list(seated(status).values())


def steps(status: Status) -> int:
    """Steps committed, all pipelines together."""
    return sum(line["step"] for line in status["pipelines"])
