"""The daemons of a run under faults: real processes, hurt by real signals, started again where they were."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from distqat.cli.chaos.relay import FAR, Relays, open_relays
from distqat.cli.daemons import Daemon, address_of, start_daemon, stop_daemons
from distqat.cli.nursery.process import Starter
from distqat.errors import DistqatError, RemoteError
from distqat.ids import Endpoint
from distqat.roles.messages import MetricLine
from distqat.roles.remote import Remote
from distqat.roles.status import PeerStatus
from distqat.rpc.grpc import open_transport
from distqat.rpc.transport import Transport

HEAD = "head"
"""The daemon that is monitor and client, and takes the role trainer too."""

LISTEN_SECONDS = 120.0
"""A daemon has to listen within this long; without a nursery torch takes its time when all of them start at once."""

LOOK_SECONDS = 0.05


class Crew:
    """A head, and experts that know its address; made by `open_crew`."""

    def __init__(
        self, folder: Path, head: list[str], starter: Starter, transport: Transport, relays: Relays | None
    ) -> None:
        self.names: dict[Endpoint, str] = {}  # Who announces what, or did in an earlier life.
        self._folder = folder
        self._head = head  # Arguments of the head.
        self._starter = starter
        self._transport = transport  # Of whoever asks.
        self._relays = relays  # None: nothing is to be cut, and daemons are dialled directly.
        self._daemons: dict[str, Daemon] = {}
        self._dead: set[str] = set()  # Killed here, and not yet started again.
        self._stopped: set[str] = set()

    def __repr__(self) -> str:
        return f"<Crew of {len(self._daemons)}, dead: {sorted(self._dead)}, stopped: {sorted(self._stopped)}>"

    @property
    def down(self) -> set[str]:
        """Who is dead, stopped or cut."""
        return self._dead | self._stopped | (self._relays.cut_off if self._relays is not None else set())

    def experts(self) -> list[str]:
        """All but the head."""
        return [name for name in self._daemons if name != HEAD]

    async def status(self, name: str, seconds: float) -> PeerStatus | None:
        """What it does, asked directly whatever becomes of its links; None: no answer within `seconds`."""
        remote = self._remote(name, seconds)
        try:
            return await remote.status() if remote is not None else None
        except DistqatError:
            return None  # It was hurt just now, or is slow; what it has to say it will say the next time.

    async def metrics(self, after: int, seconds: float) -> Sequence[MetricLine]:
        """The head's metric lines after that serial; none if it does not answer."""
        remote = self._remote(HEAD, seconds)
        try:
            return await remote.metrics(after) if remote is not None else ()
        except DistqatError:
            return ()  # As above.

    async def launch(self, experts: Iterable[str]) -> None:
        """Start the head, and when it listens all the experts. Raises RemoteError."""
        self._start(HEAD, self._head)
        address = await self.listening(HEAD)
        names = list(experts)
        for name in names:
            self._start(name, ["--role", "expert", "--join", str(address)])
        for name in names:
            await self.listening(name)

    async def listening(self, name: str) -> Endpoint:
        """Wait until it listens; what it announces. Raises RemoteError."""
        daemon, end = self._daemons[name], time.monotonic() + LISTEN_SECONDS
        while (address := address_of(daemon)) is None:
            self.check()
            if time.monotonic() > end:
                raise RemoteError(f"daemon {name} does not listen after {LISTEN_SECONDS:.0f} s; see {daemon.output}")
            await asyncio.sleep(LOOK_SECONDS)
        self.names[address] = name
        if self._relays is not None:
            await self._relays.open(name, daemon.process.pid)
        self._dead.discard(name)
        return address

    def check(self) -> None:
        """Nobody but those that are killed here leaves. Raises RemoteError."""
        for name, daemon in self._daemons.items():
            code = daemon.process.poll()
            if code is not None and name not in self._dead:
                raise RemoteError(f"daemon {name} ended by itself with exit code {code}; see {daemon.output}")

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when it is dead."""
        self._dead.add(name)
        process = self._daemons[name].process
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        if self._relays is not None:
            self._relays.close(name)

    async def revive(self, name: str) -> None:
        """Start one that was killed again, with its state folder; returns when it listens. Raises RemoteError."""
        # Nobody tells it an address: it finds the swarm by the peers that it knew.
        arguments = self._head if name == HEAD else ["--role", "expert"]
        self._start(name, arguments, is_again=True)
        await self.listening(name)

    def stop(self, name: str) -> None:
        """SIGSTOP."""
        self._stopped.add(name)
        self._daemons[name].process.send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._daemons[name].process.send_signal(signal.SIGCONT)
        self._stopped.discard(name)

    def cut(self, name: str, is_silent: bool) -> None:
        """Cut all its links. Raises RemoteError if it has none, so that there is nothing to cut."""
        if self._relays is None or not self._relays.cut(name, is_silent):
            raise RemoteError(f"daemon {name} has no links that could be cut")

    async def heal(self, name: str) -> None:
        """Mend its links."""
        assert self._relays is not None
        await self._relays.heal(name)

    async def close(self, seconds: float) -> None:
        """Let all of them leave in good order, and kill who does not in time."""
        for name in list(self._stopped):
            self.resume(name)
        await stop_daemons(list(self._daemons.values()), seconds)

    def _remote(self, name: str, seconds: float) -> Remote | None:
        """None: it does not listen now."""
        address = address_of(self._daemons[name])
        if address is None:
            return None
        return Remote(self._transport, Endpoint(FAR, address.port) if self._relays is not None else address, seconds)

    def _start(self, name: str, arguments: list[str], is_again: bool = False) -> None:
        place: list[str] = []
        if self._relays is not None:
            listen, announce = self._relays.reserve(name)
            place = ["--listen", str(listen), "--announce", str(announce)]
        run = self._folder.name
        self._daemons[name] = start_daemon(
            name, self._folder, [*arguments, *place], run, is_again, starter=self._starter
        )


@asynccontextmanager
async def open_crew(
    folder: Path, head: list[str], starter: Starter, has_cuts: bool, drain: float
) -> AsyncIterator[Crew]:
    """A crew of nobody yet; all have left at the end, within `drain` seconds or killed."""
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(starter.wait_ready)
        transport = await stack.enter_async_context(open_transport())
        relays = await stack.enter_async_context(open_relays()) if has_cuts else None
        crew = Crew(folder, head, starter, transport, relays)
        try:
            yield crew
        finally:
            for name in sorted(relays.cut_off) if relays is not None else []:
                await crew.heal(name)
            await crew.close(drain)
