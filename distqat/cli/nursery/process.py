"""A daemon as a process, however it was started: what `subprocess.Popen` shows of one, and one that was forked."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Process(Protocol):
    """A child of this process; `subprocess.Popen` is one."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """As last seen: None while it lives, minus the signal's number if one has killed it."""
        ...

    def poll(self) -> int | None:
        """The same, looked up now."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return the same. Raises subprocess.TimeoutExpired."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send it a signal; one that has ended gets none."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...


@dataclass(frozen=True)
class Birth:
    """What a daemon is to begin with, beside this process's folder and environment."""

    arguments: Sequence[str]
    stdout: int
    """File descriptor."""
    stderr: int
    """File descriptor."""


def environment() -> Mapping[str, str]:
    """That of this process, with one thread for each operation: daemons on one machine share its cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


class Starter(Protocol):
    """Starts `distqatd ARGUMENTS` as a child of this process, in a session of its own and without standard input."""

    def wait_ready(self) -> None:
        """Wait until the first one can be started at once."""
        ...

    def start(self, birth: Birth) -> Process:
        """Start one. Raises OSError."""
        ...


class Executing:
    """Runs the command, as a user does."""

    def __repr__(self) -> str:
        return "<Executing>"

    def wait_ready(self) -> None:
        """It always is."""

    def start(self, birth: Birth) -> Process:
        """Start one; it reads everything anew."""
        return subprocess.Popen(
            [sys.executable, "-m", "distqat.cli.distqatd", *birth.arguments],
            stdin=subprocess.DEVNULL,
            stdout=birth.stdout,
            stderr=birth.stderr,
            env=environment(),
            start_new_session=True,
        )


class Adopted:
    """A child that this process did not fork itself."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None  # None until its end was seen.
        self._reaping = threading.Lock()  # Its number is another's as soon as somebody has reaped it.

    def __repr__(self) -> str:
        return f"<Adopted {self.pid}, returncode {self.returncode}>"

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        with self._reaping:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        with self._reaping:
            if self.returncode is not None:
                return self.returncode
            watched = os.pidfd_open(self.pid)
        try:
            look = select.poll()
            look.register(watched, select.POLLIN)
            ended = look.poll(None if timeout is None else timeout * 1000)
        finally:
            os.close(watched)
        code = self.poll()
        if not ended or code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)
