"""What staying alive costs while nothing fails: real daemons with all of it, beside the same with it switched off.

`python -m bench overhead`. Two pipelines of two stages and a spare. Switched off are followers and their copies of
local state, checkpoints, and the averages that are kept for who missed a round. What cannot be switched off is in both:
the client asks everybody twice a second, since the plan lives from the answers and not only the lease, and what a stage
stashes until a step is committed is what any pipeline holds for its backward passes.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil

from bench.case import Case, Goal, Line
from distqat.cli.daemons import Daemon, address_of, start_daemon, stop_daemons
from distqat.cli.nursery.nursery import open_nursery
from distqat.cli.nursery.process import Starter
from distqat.errors import DistqatError
from distqat.ids import Endpoint
from distqat.roles.remote import Remote
from distqat.roles.status import SwarmStatus
from distqat.rpc.grpc import open_transport

LOOK_SECONDS = 0.2
PATIENCE = 180.0
"""Seconds until everything trains; a busy machine takes its time."""

STAGES, PIPELINES, SPARES = 2, 2, 1
SETTINGS = {
    "run.name": "overhead",
    "train.epochs": "100000",
    "sync.warmup_steps": "2",
    "plan.max_pipelines": str(PIPELINES),
}

CHEAP = Goal("ratio", 0.98)


@dataclass(frozen=True)
class Form:
    """One way to run."""

    name: str
    settings: Mapping[str, str]

    @property
    def has_followers(self) -> bool:
        """Whether the spare is to hold a stage."""
        return self.settings.get("plan.followers") != "false"

    def arguments(self) -> list[str]:
        """For the daemon that brings the run."""
        chosen = {**SETTINGS, **self.settings}
        return [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]


OFF = Form(
    "switched off",
    {
        "plan.followers": "false",
        "plan.copy_seconds": "0",
        "checkpoint.steps": "0",
        "sync.kept_rounds": "0",
    },
)
ON = Form("all of it", {})
COPIES = tuple(Form(f"copies every {s} s", {"plan.copy_seconds": s}) for s in ("0.5", "1", "5", "10"))


@dataclass(frozen=True)
class Spent:
    """What a step of 32 samples takes."""

    milliseconds: float
    working: float
    """CPU milliseconds of the daemons that train: head and seated experts."""
    everybody: float
    """The same with the spare, which is another machine's in earnest."""


async def bench(quick: bool) -> AsyncIterator[Line]:
    """All forms in turn, forwards and backwards, a new swarm each time."""
    forms = (OFF, ON) if quick else (OFF, ON, *COPIES)
    runs, seconds = (2, 10.0) if quick else (7, 20.0)
    found: dict[str, list[Spent]] = {form.name: [] for form in forms}
    with open_nursery() as starter:
        await asyncio.to_thread(starter.wait_ready)
        for number in range(runs):
            for form in forms if number % 2 == 0 else forms[::-1]:
                found[form.name].append(await measure(form, seconds, starter))
    for line in lines(found):
        yield line


def lines(found: Mapping[str, Sequence[Spent]]) -> list[Line]:
    """Every form beside `OFF`."""
    off, made = found[OFF.name], []
    for name in (name for name in found if name != OFF.name):
        for what, goal, take in PARTS:
            case = Case("overhead", f"{name}: {what}", "ms", "lower", OFF.name, goal if name == ON.name else None)
            made.append(case.line([take(one) for one in found[name]], [take(one) for one in off]))
    return made


PARTS: tuple[tuple[str, Goal | None, Callable[[Spent], float]], ...] = (
    ("a step", CHEAP, lambda one: one.milliseconds),
    ("CPU of a step, those who train", None, lambda one: one.working),
    ("CPU of a step, the spare too", None, lambda one: one.everybody),
)


async def measure(form: Form, seconds: float, starter: Starter) -> Spent:
    """One swarm, from its start to its end."""
    async with _open_swarm(form, starter) as swarm:
        await swarm.until_warm(form)
        before, began, working, everybody = await swarm.committed(), monotonic(), swarm.cpu(True), swarm.cpu(False)
        await asyncio.sleep(seconds)
        after, ended = await swarm.committed(), monotonic()
        if after <= before:
            raise RuntimeError(f"a swarm of form {form} has committed nothing in {seconds:g} s")
        steps = (after - before) / SAMPLES
        spent = (ended - began, swarm.cpu(True) - working, swarm.cpu(False) - everybody)
        return Spent(*(value / steps * 1e3 for value in spent))


SAMPLES = 32
"""Of a step; pipelines of unequal speed take other numbers, so samples are counted."""


class Swarm:
    """Daemons of one form."""

    def __init__(self, folder: Path, remote: Remote, daemons: Sequence[Daemon], spares: set[str]) -> None:
        self._folder = folder
        self._remote = remote
        self._daemons = daemons
        self._spares = spares  # Names of daemons without a seat, once it is warm.

    async def committed(self) -> int:
        """Samples so far."""
        run = (await self._status()).run()
        return run.committed if run is not None else 0

    def cpu(self, is_working: bool) -> float:
        """CPU seconds of all daemons, or of those who train."""
        chosen = [d for d in self._daemons if not (is_working and d.name in self._spares)]
        times = [psutil.Process(daemon.process.pid).cpu_times() for daemon in chosen]
        return sum(one.user + one.system for one in times)

    async def until_warm(self, form: Form) -> None:
        """All pipelines train, rounds are committed, and the spare is where it is to be. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            while True:
                status = await self._status()
                if is_warm(status, form):
                    break
                await asyncio.sleep(LOOK_SECONDS)
        seated = {peer.endpoint for peer, expert in status.experts() if expert.seated}
        self._spares |= {d.name for d in self._daemons[1:] if address_of(d) not in seated}

    async def _status(self) -> SwarmStatus:
        while True:
            try:
                return await self._remote.swarm()
            except DistqatError:
                await asyncio.sleep(LOOK_SECONDS)  # It is busy; PATIENCE ends this.


def is_warm(status: SwarmStatus, form: Form) -> bool:
    """Whether what is measured may begin."""
    seated = [e for _, e in status.experts() if e.seated and e.ready and e.round > 2]
    spares = [e for _, e in status.experts() if not e.seated and e.warm == form.has_followers]
    training = [line for line in status.pipelines() if line.phase == "training"]
    return (len(seated), len(spares), len(training)) == (STAGES * PIPELINES, SPARES, PIPELINES)


@asynccontextmanager
async def _open_swarm(form: Form, starter: Starter) -> AsyncIterator[Swarm]:
    """In a folder of its own; all gone at the end."""
    daemons: list[Daemon] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        async with open_transport() as transport:
            try:
                roles = ["--role", "client", "--role", "trainer"]
                daemons.append(start_daemon("head", folder, [*roles, *form.arguments()], starter=starter))
                head = await _listening(daemons[0])
                for number in range(STAGES * PIPELINES + SPARES):
                    arguments = ["--role", "expert", "--join", str(head)]
                    daemons.append(start_daemon(f"expert-{number}", folder, arguments, starter=starter))
                yield Swarm(folder, Remote(transport, head, 20.0), daemons, set())
            finally:
                await stop_daemons(daemons, 20.0)


async def _listening(daemon: Daemon) -> Endpoint:
    async with asyncio.timeout(PATIENCE):
        while True:
            address = address_of(daemon)
            if address is not None:
                return address
            if daemon.process.poll() is not None:
                raise RuntimeError(f"{daemon.name} has ended: {daemon.output.read_text().strip()}")
            await asyncio.sleep(LOOK_SECONDS)
