"""Whole daemons in one event loop: the composition root over the in-memory network, on the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from distqat.config import Settings, load
from distqat.ids import Endpoint
from distqat.peer.identity import open_identity
from distqat.peer.peer import Peer, PeerOrder
from distqat.roles.remote import Remote
from distqat.roles.status import PeerStatus, PipelineStatus, SwarmStatus
from distqat.rpc.local import Network
from tests.sim.gate import Gate

PORT = 7000

SMALL = (
    "run.name=sim",
    "model.name=mlp",
    "data.batch=16",
    "data.microbatches=2",
    "train.epochs=1000",
    "sync.warmup_steps=2",
    "sync.inner_steps=4",
    "daemon.threads=1",
)


@dataclass
class _Running:
    """One daemon's task."""

    task: asyncio.Task[None]
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    leave: asyncio.Event = field(default_factory=asyncio.Event)


class _HostGate(Gate):
    """Of a host with a cable."""

    def uplink(self) -> float:
        return self.inner.uplink()

    def downlink(self) -> float:
        return self.inner.downlink()


class World:
    """Hosts on one network."""

    def __init__(self, folder: Path, group: asyncio.TaskGroup, overrides: tuple[str, ...]) -> None:
        self.network = Network(seed=1, delay=0.01)
        self._folder = folder
        self._group = group
        self._overrides = overrides
        self._running: dict[str, _Running] = {}
        self._gates: dict[str, Gate] = {}
        self.peers: dict[str, Peer] = {}  # Those that listen, by host.

    async def start(self, host: str, *roles: str, join: str = "", stage: int | None = None) -> None:
        """Start a daemon on its own host; returns when it listens."""
        settings = self._settings(host)
        addresses = (Endpoint(join, PORT),) if join else ()
        running = self._running[host] = _Running(self._group.create_task(asyncio.sleep(0)))
        running.task = self._group.create_task(self._run(host, running, settings, roles, addresses, stage), name=host)
        await running.listening.wait()

    async def crash(self, host: str) -> None:
        """The host is gone without a word."""
        self.network.crash(host)
        running = self._running.pop(host)
        running.task.cancel()
        await asyncio.wait({running.task})

    def freeze(self, host: str) -> None:
        """The host is stopped (SIGSTOP): its connections stay open, and nothing passes."""
        self._gates[host].stop()

    def thaw(self, host: str) -> None:
        """It goes on (SIGCONT)."""
        self._gates[host].go_on()

    def gate(self, host: str) -> Gate:
        """Through which the host's messages pass."""
        return self._gates[host]

    def leave(self, host: str) -> None:
        """The daemon begins to drain."""
        self._running[host].leave.set()

    async def stop(self, host: str) -> None:
        """The daemon drains and leaves."""
        self.leave(host)
        await self._running.pop(host).task

    async def close(self) -> None:
        """All leave at once."""
        for running in self._running.values():
            running.task.cancel()
        await asyncio.wait({running.task for running in self._running.values()})

    async def status(self, host: str) -> SwarmStatus:
        """What the daemon on that host says of the swarm."""
        remote = Remote(self.network.transport("observer"), Endpoint(host, PORT), seconds=20.0)
        return await remote.swarm()

    async def until(
        self, host: str, condition: Callable[[SwarmStatus], object], seconds: float = 60.0, pause: float = 0.1
    ) -> SwarmStatus:
        """Ask until the status fulfils the condition; fails after so many virtual seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            status = await self.status(host)
            if condition(status):
                return status
            assert loop.time() < end, f"waited {seconds} s in vain; {describe(status)}"
            await asyncio.sleep(pause)

    async def _run(
        self,
        host: str,
        running: _Running,
        settings: Settings,
        roles: tuple[str, ...],
        join: tuple[Endpoint, ...],
        stage: int | None,
    ) -> None:
        with open_identity(Path(settings.daemon.state_dir)) as identity:
            order = PeerOrder(settings, identity, roles or ("expert",), join, stage, "client" in roles)
            gate = self._gates[host] = _HostGate(self.network.transport(host))
            async with Peer.open(order, gate, running.leave) as peer:
                self.peers[host] = peer
                running.listening.set()
                await running.leave.wait()
                await peer.drain()

    def _settings(self, host: str) -> Settings:
        own = (
            f"daemon.listen={host}:{PORT}",
            f"daemon.state_dir={self._folder / host}",
            f"daemon.log_dir={self._folder / 'logs'}",
        )
        return load(None, (*SMALL, *own, *self._overrides))


@asynccontextmanager
async def open_world(folder: Path, *overrides: str) -> AsyncIterator[World]:
    """A network without daemons; all that are started on it are gone at the end."""
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        world = World(folder, group, overrides)
        try:
            yield world
        finally:
            await world.close()


def training(status: SwarmStatus) -> list[PipelineStatus]:
    """The pipelines that train."""
    return [line for line in status.pipelines() if line.phase == "training"]


def steps(status: SwarmStatus) -> int:
    """Steps committed, all pipelines together."""
    return sum(line.step for line in status.pipelines())


def peer_of(status: SwarmStatus, host: str) -> PeerStatus:
    """The daemon on that host."""
    return next(peer for peer in status.peers if peer.endpoint.host == host)


def describe(status: SwarmStatus) -> str:
    """Who does what, in a few lines."""
    lines = [
        f"{peer.endpoint.host}: {peer.reason}; " + "; ".join(f"{r.role} {r.phase}: {r.reason}" for r in peer.roles)
        for peer in status.peers
    ]
    return "\n".join([*lines, *(f"{line.pipeline} {line.phase} step {line.step}" for line in status.pipelines())])
