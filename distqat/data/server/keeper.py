"""The client's side: starts the data server, hears that it lives, starts it again when it does not, and ends it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from distqat.aio import Backoff, supervise
from distqat.config import RunConfig
from distqat.data.server.blocks import FOLDER, sweep
from distqat.data.server.lifeline import hear
from distqat.errors import DataError, RefusedError
from distqat.ids import Endpoint
from distqat.rpc.handlers import task_group
from distqat.telemetry import LogFormat, Reason

log = logging.getLogger(__name__)

RESTARTS = 10
"""Failures in a row after which it is given up; one that has served for a while begins a new row."""

MAX_LINE = 1 << 16
"""Bytes of what a server says at once."""


@dataclass(frozen=True)
class Patience:
    """Seconds."""

    silence: float = 10.0
    """After which a server that serves is taken for hung: it says that it lives twice a second."""
    opening: float = 60.0
    """The same while it opens the data set, however long that takes: it says so meanwhile."""
    end: float = 5.0
    """Until one that was asked to end is killed."""
    killed: float = 5.0
    """Until one that was killed is left to the system: it may be in a call that cannot be broken off."""
    making: float = 30.0
    """That a worker of the server has for a part of a slot, at least."""
    first: float = 0.2
    """Before the first new start; twice as long each time."""
    most: float = 10.0
    """Before any."""


@dataclass(frozen=True)
class Launch:
    """What is started."""

    config: RunConfig
    listen: Endpoint
    """Port 0: any free one."""
    host: str
    """Under which others reach this machine."""
    folder: Path = FOLDER
    """Of the shared memory."""
    module: str = "distqat.data.server"
    """That is run."""
    log_level: str = "info"
    log_format: LogFormat = "rich"


class Keeper:
    """One data server, and the next when it is gone; made by `open_keeper`."""

    def __init__(self, launch: Launch, restarted: Callable[[str], None], patience: Patience) -> None:
        self.phase = "starting"
        self.pid = 0  # Of the server; 0 while there is none.
        self.num_samples = 0  # To train on; 0 until the first server has opened the data set.
        self._launch = launch
        self._restarted = restarted  # Told why the one before is gone, once the next serves.
        self._patience = patience
        self._reason = Reason(log, "")
        self._endpoint: Endpoint | None = None  # None while nobody serves.
        self._lost = ""  # Why the last one is gone; empty: it is not, or was told.
        self._serves = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Keeper {self.status}>"

    @property
    def status(self) -> str:
        """Phase and reason, in one sentence."""
        return f"data server {self.phase}: {self._reason}"

    def where(self) -> Endpoint:
        """Where it answers. Raises RefusedError while nobody does."""
        if self._endpoint is None:
            raise RefusedError(self.status)
        return self._endpoint

    async def wait_samples(self) -> int:
        """The number of training samples, as soon as a server has opened the data set."""
        await self._serves.wait()
        return self.num_samples

    async def work(self) -> None:
        """For ever. Raises GivenUpError."""
        backoff = Backoff(self._patience.first, self._patience.most)
        await supervise("the data server", self._serve, backoff, self._failed, RESTARTS)

    def _failed(self, error: BaseException) -> None:
        self.phase = "failed"
        self._lost = str(error)
        self._reason.set(f"{error}; it is started again")

    async def _serve(self) -> None:
        """One server from its start to its end. Raises DataError, OSError."""
        self.phase = "starting"
        self._reason.set(f"opening data source {self._launch.config.data.source}")
        ours, theirs = socket.socketpair()
        is_faulty = False
        with ours, theirs:
            process = self._start(theirs)
            theirs.close()
            reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
            try:
                writer.write(self._order())
                await self._listen(reader)
            except DataError:
                is_faulty = True
                raise
            finally:
                self._endpoint, self.pid = None, 0
                writer.close()
                await self._end(process, 0.0 if is_faulty else self._patience.end)
        code = process.returncode
        if code is None:
            raise DataError("it was to end, and does not even when it is killed")
        raise DataError(f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}")

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        """By the thread that lives as long as this process: the system tells the server of that thread's end."""
        process = subprocess.Popen(
            [sys.executable, "-m", self._launch.module, str(control.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(control.fileno(),),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.pid = process.pid
        return process

    def _order(self) -> bytes:
        launch = self._launch
        order = {
            "config": launch.config.canonical(),
            "listen": str(launch.listen),
            "folder": str(launch.folder),
            "making": str(self._patience.making),
            "log_level": launch.log_level,
            "log_format": launch.log_format,
        }
        return json.dumps(order).encode() + b"\n"

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Until it is gone. Raises DataError when it is silent, or says that it cannot serve."""
        while True:
            seconds = self._patience.silence if self.phase == "serving" else self._patience.opening
            try:
                text = await hear(reader.readline, seconds)
            except TimeoutError:
                raise DataError(f"it has said nothing for {seconds:g} s") from None
            except (OSError, ValueError):
                return
            if not text.endswith(b"\n"):
                return
            self._hear(json.loads(text))

    def _hear(self, line: dict[str, str | int]) -> None:
        if line["phase"] == "failed":
            raise DataError(str(line["text"]))
        self.phase = str(line["phase"])
        # Numbers that change all the time are for the status alone.
        self._reason.set(str(line["text"]), logging.DEBUG)
        if self.phase != "serving":
            return
        samples = int(line["samples"])
        if self.num_samples and samples != self.num_samples:
            raise DataError(f"it has {samples} samples to train on, and the run began with {self.num_samples}")
        self.num_samples = samples
        port = Endpoint.parse(str(line["endpoint"])).port
        if self._endpoint is None and self._lost:
            self._restarted(self._lost)
            self._lost = ""
        self._endpoint = Endpoint(self._launch.host, port)
        self._serves.set()

    async def _end(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """See to it that it is gone, if it does not go by itself for so long, and its memory too."""
        try:
            await _wait_gone(process, seconds)
        finally:
            # Also if somebody does not want to wait.
            process.kill()
            try:
                if not await _wait_gone(process, self._patience.killed):
                    log.error("the data server, process %d, does not end though it is killed", process.pid)
            finally:
                sweep(self._launch.folder)


async def _wait_gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ends within so long."""
    end = asyncio.get_running_loop().time() + seconds
    while process.poll() is None:
        if asyncio.get_running_loop().time() >= end:
            return False
        await asyncio.sleep(0.01)
    return True


@asynccontextmanager
async def open_keeper(
    launch: Launch, restarted: Callable[[str], None] = lambda why: None, patience: Patience | None = None
) -> AsyncIterator[Keeper]:
    """A data server as long as the block lasts. Raises GivenUpError when none can be kept alive."""
    keeper = Keeper(launch, restarted, patience or Patience())
    async with task_group() as group:
        working = group.create_task(keeper.work(), name="data server")
        try:
            yield keeper
        finally:
            working.cancel()
