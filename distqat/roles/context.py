"""What a role gets from the daemon that holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from distqat.config import RunConfig, Settings
from distqat.discovery.directory import Directory
from distqat.errors import WrongRunError
from distqat.ids import Endpoint, PeerId, RunId
from distqat.roles.history import History
from distqat.roles.status import RoleStatus
from distqat.rpc.transport import Server, Transport
from distqat.telemetry import Telemetry

RESTARTS = 20
"""Failures in a row after which a role is dropped; with their pauses these are about three minutes."""


class Role(Protocol):
    """What a daemon knows of a role that it holds."""

    def status(self) -> RoleStatus:
        """Phase, reason and facts."""
        ...

    async def drain(self) -> None:
        """Finish what was begun and begin nothing new; returns when the role can be dropped without loss."""
        ...


class RunHolder:
    """The run's config, once it is known."""

    def __init__(self) -> None:
        self.config: RunConfig | None = None  # None until brought by --config or learned from the swarm.
        self._known = asyncio.Event()

    @property
    def id(self) -> RunId | None:
        """The run's identity, if it is known."""
        return self.config.id if self.config is not None else None

    def set(self, config: RunConfig) -> None:
        """This is the run; another one is refused from now on."""
        if self.config is not None and self.config.id != config.id:
            raise WrongRunError(f"this daemon works for run {self.config.id}, not {config.id}")
        self.config = config
        self._known.set()

    async def wait(self) -> RunConfig:
        """The config, as soon as it is known."""
        await self._known.wait()
        assert self.config is not None
        return self.config

    def check(self, run: RunId | None) -> None:
        """Raise WrongRunError unless this daemon works for that run."""
        if run is None or run != self.id:
            raise WrongRunError(f"asked to work for run {run}, but this daemon works for {self.id or 'none yet'}")


class Heartbeat:
    """Whether the daemon gets anywhere. Its lease is renewed by answers that say so; a hung daemon gives none.

    Whoever has work that may get stuck where the event loop does not notice (a device) is asked each time.
    """

    def __init__(self) -> None:
        self._asked: list[Callable[[], tuple[float, float]]] = []

    @contextmanager
    def asking(self, pulse: Callable[[], tuple[float, float]]) -> Iterator[None]:
        """Within, ask this for seconds: those by which its work is overdue, 0 while it gets on or has nothing to do;
        and those of its longest unit of work lately."""
        self._asked.append(pulse)
        try:
            yield
        finally:
            self._asked.remove(pulse)

    def idle_seconds(self) -> float:
        """Seconds without progress; 0 while everything gets on."""
        return max((pulse()[0] for pulse in self._asked), default=0.0)

    def work_seconds(self) -> float:
        """Of the longest unit of work lately; 0 where none is done."""
        return max((pulse()[1] for pulse in self._asked), default=0.0)


@dataclass(frozen=True)
class RoleContext:
    """The daemon, as its roles see it."""

    me: PeerId
    endpoint: Endpoint
    transport: Transport
    server: Server
    directory: Directory
    telemetry: Telemetry
    settings: Settings
    run: RunHolder
    heartbeat: Heartbeat
    state_dir: Path
    take_role: Callable[[str], Awaitable[None]]
    lose: Callable[[PeerId, Endpoint, str], None]
    """A peer is lost, for that reason: it is out of the directory, and who waits for it is told at once."""
    history: History = field(default_factory=History)
    beside: Callable[[str], Role | None] = lambda name: None
    """A role that this daemon holds too, by its name; None if it does not, or the role is not ready."""
    resumes: bool = False
    """This daemon was told to go on with a run: it never begins one anew."""


@dataclass(frozen=True)
class RoleOptions:
    """What may be said when a role is taken."""

    stage: int | None = None


OpenRole = Callable[[RoleContext, RoleOptions], AbstractAsyncContextManager[Role]]
"""How a role is taken: entering takes it, leaving drops it."""
