"""Seconds from the kill of an expert to the next step that its pipeline commits, with real daemons on loopback.

A new expert is started after each kill, and the next one comes when it is where it should be: warm, or just there.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time

from bench.case import Case, Goal, Line
from distqat.cli.daemons import Daemon, address_of, start_daemon, stop_daemons
from distqat.errors import DistqatError
from distqat.events import Kind as Happened
from distqat.ids import Endpoint
from distqat.roles.remote import Remote
from distqat.roles.status import SwarmStatus
from distqat.rpc.grpc import open_transport
from distqat.rpc.transport import Transport

LOOK_SECONDS = 0.1
PATIENCE = 120.0
"""Seconds for anything to come true; a busy machine takes its time to start a daemon."""

SETTINGS = {
    "run.name": "failover",
    "model.name": "mlp",
    "data.batch": "16",
    "train.epochs": "100000",
    "sync.warmup_steps": "2",
    "sync.inner_steps": "20",
    "sync.max_wait": "15",
}
STAGES = 2


@dataclass(frozen=True)
class Kill:
    """A kind of failure, and who is there to take the place."""

    name: str
    signal: signal.Signals
    is_warm: bool
    lease: float = 3.0
    goals: tuple[Goal | None, Goal | None] = (None, None)
    """Of the median and of the slowest percent."""
    spares: int = 1

    def settings(self) -> dict[str, str]:
        """Of the run."""
        own = {
            "lease.min": str(self.lease),
            "plan.followers": str(self.is_warm).lower(),
            "plan.max_pipelines": str(self.pipelines),
        }
        return {**SETTINGS, **own}

    @property
    def pipelines(self) -> int:
        """In the swarm; who is not warm needs somebody to get the state from."""
        return 1 if self.is_warm else 2


WITHIN_1, WITHIN_3 = Goal("value", 1.0), Goal("value", 3.0)

KILLS = (
    # A longer lease, so that a busy machine loses nobody by itself: a kill is not noticed by it.
    Kill("SIGKILL, a warm spare", signal.SIGKILL, True, 10.0, (WITHIN_1, WITHIN_3)),
    Kill("SIGKILL, a cold spare", signal.SIGKILL, False, 10.0),
    Kill("SIGSTOP, a warm spare", signal.SIGSTOP, True),
)


class RecoveryError(RuntimeError):
    """The swarm did not come to where a measurement begins."""


@dataclass(frozen=True)
class Recovery:
    """Seconds since one kill."""

    found: float
    """Until the client took the victim for lost."""
    stepped: float
    """Until its pipeline, or one instead of it, had committed another step."""


def lines(kill: Kill, recovered: Sequence[Recovery]) -> list[Line]:
    """Percentiles of what was measured; who is stopped has to be found within its lease and half a second."""
    found = percentiles(kill.name, [one.stepped for one in recovered], kill.goals)
    if kill.signal is signal.SIGSTOP:
        within = Goal("value", kill.lease + 0.5)
        found += percentiles(f"{kill.name}: found", [one.found for one in recovered], (within, within))
    return found


def percentiles(
    name: str, seconds: Sequence[float], goals: tuple[Goal | None, Goal | None], what: str = "kills"
) -> list[Line]:
    """A line for the median, and for the slowest twentieth and hundredth."""
    ordered = sorted(seconds)
    found = []
    for percent, goal in ((50, goals[0]), (95, None), (99, goals[1])):
        value = ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]
        case = Case("failover", f"{name}, p{percent} of {len(ordered)} {what}", "s", "lower", goal=goal)
        found.append(case.line([value]))
    return found


async def recoveries(kill: Kill, times: int) -> list[Recovery]:
    """So many kills in one swarm."""
    async with open_crew(kill) as crew:
        return [await crew.kill() for _ in range(times)]


class Crew:
    """A client that trains, experts, and a spare."""

    def __init__(self, folder: Path, transport: Transport, kind: Kill) -> None:
        self._folder = folder
        self._transport = transport
        self._kind = kind
        self._experts = 0  # That were started so far.
        self.daemons: list[Daemon] = []
        self.head = Endpoint("127.0.0.1", 0)

    def __repr__(self) -> str:
        return f"<Crew of {len(self.daemons)} daemons at {self.head}>"

    async def start(self) -> None:
        """The head, an expert for each stage, and a spare."""
        settings = self._kind.settings()
        chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        # The trainer is in the same daemon, so the swarm's status there is that of the pipeline.
        head = start_daemon("head", self._folder, ["--role", "client", "--role", "trainer", *chosen])
        self.daemons.append(head)
        self.head = await self._until(lambda: address_of(head), "the head to listen")
        for _ in range(STAGES * self._kind.pipelines + self._kind.spares):
            self.add()

    async def kill(self) -> Recovery:
        """Hurt an expert, put another in its place, and say how long the pipeline took to go on."""
        status = await self.ready()
        followed = next((e.follows for _, e in status.experts() if e.warm), 0)
        victim, pipeline = next((p, e.pipeline) for p, e in status.experts() if e.seated and e.stage == followed)
        daemon = next(d for d in self.daemons if address_of(d) == victim.endpoint)
        others = {e.pipeline for _, e in status.experts() if e.pipeline and e.pipeline != pipeline}
        remote = self.remote()
        event, metric = await self.serials()
        began = time()
        daemon.process.send_signal(self._kind.signal)
        stepped = await self._stepped(remote, others, event, metric) - began
        told = (await remote.events(event)).events
        found = next(e.wall for e in told if e.kind == Happened.LOST and e.subject.peer == victim.peer) - began
        await self.bury(daemon)
        self.add()
        return Recovery(found, stepped)

    def add(self) -> Daemon:
        """One more expert."""
        self._experts += 1
        name = f"expert-{self._experts}"
        daemon = start_daemon(name, self._folder, ["--role", "expert", "--join", str(self.head)])
        self.daemons.append(daemon)
        return daemon

    async def bury(self, daemon: Daemon) -> None:
        """Be sure that it is dead, and forget it."""
        daemon.process.kill()
        await asyncio.to_thread(daemon.process.wait)
        self.daemons.remove(daemon)

    def remote(self, at: Endpoint | None = None) -> Remote:
        """The head, or another daemon."""
        return Remote(self._transport, at or self.head, 20.0)

    async def serials(self) -> tuple[int, int]:
        """Of the head's last event and metric line."""
        known, last = await self.remote().events(), await self.remote().metrics(0)
        return known.events[-1].serial, last[-1].serial if last else 0

    async def ready(self) -> SwarmStatus:
        """Once the pipeline trains, has committed rounds, and the spare is where it should be."""
        last: list[SwarmStatus] = []
        end = monotonic() + PATIENCE
        while monotonic() < end:
            try:
                last = [await Remote(self._transport, self.head, 20.0).swarm()]
            except DistqatError:
                await asyncio.sleep(0.2)
                continue
            if self._is_ready(last[0]):
                # Whatever was only begun comes to its end.
                await asyncio.sleep(1.0)
                return last[0]
            await asyncio.sleep(0.2)
        raise RecoveryError(f"the swarm is not ready for a kill: {last}")

    def _is_ready(self, status: SwarmStatus) -> bool:
        seated = [e for _, e in status.experts() if e.seated and e.ready and e.round > 2]
        spares = [e for _, e in status.experts() if not e.seated and e.warm == self._kind.is_warm]
        training = [line for line in status.pipelines() if line.phase == "training"]
        count = self._kind.pipelines
        found = (len(training), len(seated), len(spares))
        return found == (count, STAGES * count, self._kind.spares)

    async def _stepped(self, remote: Remote, others: set[str], event: int, metric: int) -> float:
        """When a step was committed on a route that was opened after that event, by the clock of this machine."""
        end = monotonic() + PATIENCE
        while monotonic() < end:
            await asyncio.sleep(LOOK_SECONDS)
            opened = [
                found.wall
                for found in (await remote.events(event)).events
                if found.kind == Happened.EPOCH_OPENED and found.subject.pipeline not in others
            ]
            for line in await remote.metrics(metric) if opened else ():
                if line.kind == "step" and line.time > opened[0] and line.labels["pipeline"] not in others:
                    return line.time
        raise RecoveryError(f"no step for {PATIENCE:g} s after {self._kind.name}")

    async def _until(self, look: Callable[[], Endpoint | None], what: str) -> Endpoint:
        end = monotonic() + PATIENCE
        while monotonic() < end:
            found = look()
            if found is not None:
                return found
            await asyncio.sleep(0.1)
        raise RecoveryError(f"waited {PATIENCE:g} s in vain for {what}")


@asynccontextmanager
async def open_crew(kind: Kill) -> AsyncIterator[Crew]:
    """Daemons with a folder of their own, all gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_transport() as transport:
            crew = Crew(Path(folder), transport, kind)
            try:
                await crew.start()
                yield crew
            finally:
                await stop_daemons(crew.daemons, 20.0)
