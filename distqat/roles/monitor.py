"""The monitor: a stable entry point that watches the whole swarm and keeps its metrics.

It asks and nobody waits for it, so its death stops nothing; when it returns it asks each peer for the lines it missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from distqat.aio import Backoff, supervise
from distqat.errors import DistqatError
from distqat.ids import Endpoint, short
from distqat.roles.context import RESTARTS, RoleContext, RoleOptions
from distqat.roles.messages import MetricLine
from distqat.roles.remote import Remote
from distqat.roles.sinks import METRICS_FILE, Sink, last_serials, open_sinks
from distqat.roles.status import RoleStatus
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

PEERS_FILE = "initial_peers.txt"


@asynccontextmanager
async def open_role(context: RoleContext, options: RoleOptions) -> AsyncIterator[Monitor]:
    """Watch the swarm while the role is held."""
    monitor = Monitor(context)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(supervise("monitor", monitor.watch, Backoff(1.0, 10.0), monitor.failed, RESTARTS))
        yield monitor
        task.cancel()


class Monitor:
    """Collects the metric lines of every peer."""

    def __init__(self, context: RoleContext) -> None:
        self._context = context
        self._reason = Reason(log, "waiting: no run is known yet")
        self._phase = "waiting"
        self._seen: dict[str, int] = {}  # Serial of the last line that was taken from each peer.
        self._silent: set[str] = set()  # Peers of the last look that did not answer.
        self._lines = 0  # Lines taken, all peers together.

    def __repr__(self) -> str:
        return f"<Monitor {self._phase} {self._lines} lines from {len(self._seen)} peers>"

    def status(self) -> RoleStatus:
        """Phase and reason."""
        return RoleStatus("monitor", self._phase, str(self._reason))

    async def drain(self) -> None:
        """Nobody waits for a monitor."""

    def failed(self, error: BaseException) -> None:
        """The watch failed and will be tried again."""
        self._phase = "failed"
        self._reason.set(f"{error}", logging.WARNING)

    async def watch(self) -> None:
        """Look at the swarm again and again, and keep what it says."""
        section = self._context.settings.monitor
        config = await self._context.run.wait()
        folder = Path(self._context.settings.daemon.log_dir) / config.run.name
        self._phase = "joining"
        self._reason.set(f"opening what takes the metrics of run {config.id}")
        async with AsyncExitStack() as stack:
            # In a thread: opening a sink may read packages and reach for the network.
            sinks_cm = open_sinks(section, config.id, folder)
            sinks = await asyncio.to_thread(sinks_cm.__enter__)
            stack.push_async_callback(asyncio.to_thread, sinks_cm.__exit__, None, None, None)
            self._seen = await asyncio.to_thread(last_serials, folder / METRICS_FILE)
            self._phase = "training"
            while True:
                await self._look(folder, sinks)
                await asyncio.sleep(section.interval)

    async def _look(self, folder: Path, sinks: Sequence[Sink]) -> None:
        peers = {peer: entry.record.endpoint for peer, entry in self._context.directory.snapshot().peers.items()}
        peers[self._context.me] = self._context.endpoint
        await asyncio.to_thread(_write_peers, folder / PEERS_FILE, sorted(peers.values()))
        self._silent &= peers.keys()
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask(peer, endpoint)) for peer, endpoint in sorted(peers.items())]
        for peer, lines in (task.result() for task in asked):
            if not lines:
                continue
            self._seen[peer] = lines[-1].serial
            self._lines += len(lines)
            for sink in sinks:
                await asyncio.to_thread(sink.write, peer, lines)
        silent = f", of which {len(self._silent)} do not answer: {', '.join(map(short, sorted(self._silent)))}"
        self._reason.set(f"watching {len(peers)} peers{silent if self._silent else ''}", logging.DEBUG)

    async def _ask(self, peer: str, endpoint: Endpoint) -> tuple[str, Sequence[MetricLine]]:
        remote = Remote(self._context.transport, endpoint)
        try:
            lines = await remote.metrics(self._seen.get(peer, 0))
            self._silent.discard(peer)
            return peer, lines
        except DistqatError as error:
            self._silent.add(peer)
            log.debug("%s did not tell its metrics: %s", endpoint, error)
            return peer, ()


def _write_peers(path: Path, endpoints: Sequence[Endpoint]) -> None:
    text = "".join(f"{endpoint}\n" for endpoint in endpoints)
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(path)
