"""A whole swarm on this machine: real daemons, real training, a local baseline, and a scorecard."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distqat.cli import show
from distqat.cli.daemons import Daemon, start_daemon, stop_daemons
from distqat.cli.nursery.nursery import open_nursery
from distqat.cli.nursery.process import Birth, Starter
from distqat.cli.scorecard import Scorecard, read_baseline
from distqat.config import Settings
from distqat.errors import RemoteError
from distqat.event_log import file_name
from distqat.ids import Endpoint
from distqat.roles.remote import Remote
from distqat.roles.status import SwarmStatus
from distqat.rpc.grpc import open_transport
from distqat.rpc.loop import run

START_SECONDS = 60.0
"""The first daemon has to listen within this long."""

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    settings: Settings
    config: Path | None
    overrides: tuple[str, ...]
    pipelines: int
    seconds: float
    has_baseline: bool
    as_json: bool
    spares: int = 0
    """Experts beyond those of the pipelines."""

    @property
    def experts(self) -> int:
        """All that are started."""
        return self.settings.model.stages * self.pipelines + self.spares

    @property
    def folder(self) -> Path:
        """Where logs, metrics and states go."""
        return Path(self.settings.daemon.log_dir) / self.settings.run.name

    def arguments(self) -> list[str]:
        """The config, as every daemon of the sandbox that brings one is told."""
        chosen = ["--config", str(self.config)] if self.config is not None else []
        # Otherwise enough spares would make a pipeline of their own.
        limits = [f"plan.max_pipelines={self.pipelines}"] if self.spares else []
        return [*chosen, *(part for override in (*self.overrides, *limits) for part in ("--set", override))]

    def clear(self) -> None:
        """Remove what an earlier run has left in the folder and would be taken for this one's."""
        shutil.rmtree(self.folder / "states", ignore_errors=True)
        events = (path.name for path in self.folder.glob(file_name("*")))
        for stale in ("initial_peers.txt", "metrics.jsonl", *events):
            (self.folder / stale).unlink(missing_ok=True)


def run_sandbox(plan: Plan) -> bool:
    """Run it, print the scorecard, and say whether it passed. Raises DistqatError."""
    console = Console(stderr=plan.as_json)
    plan.clear()
    baseline = None
    with open_nursery() as starter:
        began = time.monotonic()
        swarm = run(_train(plan, starter, console))
        seconds = time.monotonic() - began
        if plan.has_baseline:
            console.print("training the baseline: the same model, data order and budget in one process")
            baseline = read_baseline(run_baseline(plan, starter))
    card = Scorecard.of(plan.settings, swarm, seconds, baseline)
    Console().print(card.as_json() if plan.as_json else card.render(), soft_wrap=plan.as_json)
    return card.passed


async def _train(plan: Plan, starter: Starter, console: Console) -> SwarmStatus:
    """Start the daemons, watch until the run is finished, and return the last status of all of them."""
    async with _swarm(plan, starter) as (head, daemons), open_transport() as transport:
        remote = Remote(transport, head, seconds=10.0)
        with Live(console=console, auto_refresh=False, transient=False) as live:
            deadline = time.monotonic() + plan.seconds
            while True:
                swarm = await remote.swarm()
                live.update(_progress(swarm), refresh=True)
                status = swarm.run()
                if status is not None and status.finished:
                    return swarm
                _check(daemons)
                if time.monotonic() > deadline:
                    raise RemoteError(f"not finished after {plan.seconds:.0f} s; see {plan.folder}/*.log")
                await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def _swarm(plan: Plan, starter: Starter) -> AsyncIterator[tuple[Endpoint, list[Daemon]]]:
    """The daemons: monitor and client in one, then an expert for each stage of each pipeline, then the spares."""
    daemons: list[Daemon] = []
    await asyncio.to_thread(starter.wait_ready)
    try:
        arguments = ["--role", "monitor", "--role", "client", *plan.arguments()]
        daemons.append(start_daemon("head", plan.folder, arguments, plan.settings.run.name, starter=starter))
        head = await _first_peer(plan, daemons)
        for number in range(plan.experts):
            name, arguments = f"expert-{number}", ["--role", "expert", "--join", str(head)]
            daemons.append(start_daemon(name, plan.folder, arguments, plan.settings.run.name, starter=starter))
        yield head, daemons
    finally:
        await stop_daemons(daemons, plan.settings.daemon.drain_timeout)


async def _first_peer(plan: Plan, daemons: list[Daemon]) -> Endpoint:
    """The address that the monitor writes as soon as it listens."""
    path = plan.folder / "initial_peers.txt"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        _check(daemons)
        if path.exists() and (text := path.read_text().strip()):
            return Endpoint.parse(text.splitlines()[0])
        await asyncio.sleep(0.05)
    raise RemoteError(f"the first daemon does not listen after {START_SECONDS:.0f} s; see {daemons[0].output}")


def _check(daemons: list[Daemon]) -> None:
    """Nobody is meant to leave before the end."""
    for daemon in daemons:
        code = daemon.process.poll()
        if code is not None:
            raise RemoteError(f"daemon {daemon.name} ended with exit code {code}; see {daemon.output}")


def run_baseline(plan: Plan, starter: Starter) -> str:
    """Train in one process; what it prints. Raises RemoteError."""
    arguments = ["--role", "trainer", "--local", *plan.arguments(), "--set", "daemon.threads=1"]
    output = plan.folder / "baseline.out"
    with output.open("wb") as errors, tempfile.TemporaryFile() as told:
        process = starter.start(Birth(arguments, told.fileno(), errors.fileno()))
        try:
            code = process.wait(plan.seconds)
        except subprocess.TimeoutExpired:
            raise RemoteError(f"the baseline is not finished after {plan.seconds:.0f} s") from None
        finally:
            process.kill()
            process.wait()
        told.seek(0)
        printed = told.read().decode()
    if code != 0:
        raise RemoteError(f"the baseline ended with exit code {code}; see {output}")
    return printed


def _progress(swarm: SwarmStatus) -> RenderableType:
    status = swarm.run()
    if status is None or not status.budget:
        return Text("starting ...")
    bar = Table.grid(padding=(0, 1))
    share = f"{status.committed}/{status.budget} samples"
    bar.add_row("progress", ProgressBar(total=status.budget, completed=status.committed, width=40), share)
    return Group(bar, show.render(swarm))
