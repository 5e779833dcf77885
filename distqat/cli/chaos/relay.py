"""Links that can be cut without any right on the machine: a relay on loopback in front of each daemon.

    whoever dials 127.0.0.1:PORT ==> relay ==> the daemon, which listens on 127.0.0.2:PORT and announces 127.0.0.1:PORT

Both ways of a daemon are cut: connections to it come through its own relay, and those that it opens through the relays
of others, which find out in `/proc/net/tcp` whose they are. This needs Linux.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from distqat.cli.chaos.owners import End, owners
from distqat.errors import ConfigError
from distqat.ids import Endpoint
from distqat.rpc.handlers import task_group

NEAR, FAR = "127.0.0.1", "127.0.0.2"
"""Where relays listen, and where daemons do, each pair on one port."""


class _Side(asyncio.Protocol):
    """One end of a connection through a relay: what it receives leaves at the other end."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.transport: asyncio.Transport | None = None  # None until connected.
        self.other: _Side | None = None  # None until both ends are connected.
        self.is_full = False  # The other end takes no more for now.
        self._held: list[bytes] = []  # Received while nothing may pass: uvloop reads once before it heeds a pause.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Those of uvloop have all its methods, but are no subclass.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()
        self.pair.connected(self)

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        self.flow()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.is_full = True
            self.other.flow()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.is_full = False
            self.other.flow()

    def eof_received(self) -> None:
        """Closed, and with it the other end: nobody here says half of it."""

    def connection_lost(self, error: Exception | None) -> None:
        self.pair.ended(self, error)

    def flow(self) -> None:
        """Read, or do not: not while the link is silent or the other end is full."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.pair.is_silent or self.other is None:
            self.transport.pause_reading()
            return
        assert self.other.transport is not None
        while self._held:
            self.other.transport.write(self._held.pop(0))
        if self.is_full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


class Pair:
    """One connection: from a daemon, or somebody unknown, to the daemon behind a relay."""

    def __init__(self, relays: Relays, to: str) -> None:
        self.relays = relays
        self.to = to
        self.caller = ""  # Name of the daemon that dialled; empty: another process.
        self.is_silent = False
        self.near = _Side(self)
        self.far = _Side(self)

    def connected(self, side: _Side) -> None:
        """One end is there; once both are, bytes flow."""
        if side is self.near:
            self.relays.accepted(self)
            return
        if self.near.transport is None or self.near.transport.is_closing():
            self.abort()
            return
        self.near.other, self.far.other = self.far, self.near
        self.flow()

    def flow(self) -> None:
        """As the link is now."""
        self.near.flow()
        self.far.flow()

    def ended(self, side: _Side, error: Exception | None) -> None:
        """One end is gone, and the other one goes the same way."""
        self.relays.forget(self)
        other = self.far if side is self.near else self.near
        if other.transport is not None and not other.transport.is_closing():
            other.transport.abort() if error is not None else other.transport.close()

    def abort(self) -> None:
        """Break both ends."""
        self.relays.forget(self)
        for side in (self.near, self.far):
            if side.transport is not None:
                side.transport.abort()


class Relays:
    """A relay for each of some daemons; made by `open_relays`."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group  # Owns the attempts to connect.
        self._holders: dict[str, socket.socket] = {}  # Keep the ports, whether a relay listens or not.
        self._servers: dict[str, asyncio.Server] = {}  # Relays that listen.
        self._pids: dict[int, str] = {}  # Whose connections those of a process are.
        self._pairs: set[Pair] = set()
        self._strangers: dict[Pair, End] = {}  # Connections of which it is not known whose they are.
        self._is_asking = False  # It is being found out.
        self._silent: set[str] = set()
        self._refused: set[str] = set()
        self._is_shut = False

    def __repr__(self) -> str:
        return f"<Relays {sorted(self._servers)}, {len(self._pairs)} connections, cut: {sorted(self.cut_off)}>"

    @property
    def cut_off(self) -> set[str]:
        """Daemons whose links are cut."""
        return self._silent | self._refused

    def reserve(self, name: str) -> tuple[Endpoint, Endpoint]:
        """A port for a daemon: where it has to listen, and what it has to announce."""
        if name not in self._holders:
            self._holders[name] = holder = socket.socket()
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((NEAR, 0))
        port = self._port(name)
        return Endpoint(FAR, port), Endpoint(NEAR, port)

    async def open(self, name: str, pid: int) -> None:
        """The daemon listens: take connections to it, and know its own."""
        self._pids = {known: of for known, of in self._pids.items() if of != name} | {pid: name}
        if name not in self._servers and name not in self._refused:
            await self._listen(name)

    def close(self, name: str) -> None:
        """The daemon is dead: whoever dials it is refused, as without a relay."""
        server = self._servers.pop(name, None)
        if server is not None:
            server.close()

    def cut(self, name: str, is_silent: bool) -> int:
        """Cut all links of a daemon; how many connections that hits."""
        (self._silent if is_silent else self._refused).add(name)
        hit = [pair for pair in self._pairs if name in (pair.to, pair.caller)]
        for pair in hit:
            if is_silent:
                pair.is_silent = True
                pair.flow()
            else:
                pair.abort()
        if not is_silent:
            self.close(name)
        return len(hit)

    async def heal(self, name: str) -> None:
        """Good links again; what was held back goes on."""
        self._silent.discard(name)
        if name in self._refused:
            self._refused.discard(name)
            await self._listen(name)
        for pair in [pair for pair in self._pairs if pair.is_silent and not self._silent & {pair.to, pair.caller}]:
            pair.is_silent = False
            if pair.near.other is None:
                self._group.create_task(self._connect(pair))
            pair.flow()

    def shut(self) -> None:
        """Close everything."""
        self._is_shut = True
        for name in list(self._servers):
            self.close(name)
        for pair in list(self._pairs):
            pair.abort()
        for holder in self._holders.values():
            holder.close()

    def accepted(self, pair: Pair) -> None:
        """Somebody has dialled a relay; nothing flows before it is known who."""
        assert pair.near.transport is not None
        peer = pair.near.transport.get_extra_info("peername")
        if self._is_shut or peer is None:
            pair.abort()  # It was in the queue of a relay; or it has left while it was.
            return
        self._strangers[pair] = (peer[1], self._port(pair.to))
        if not self._is_asking:
            self._is_asking = True
            self._group.create_task(self._introduce())

    async def _introduce(self) -> None:
        """Find out who has dialled, all those at once that have come meanwhile: one by one they would come faster than
        they are known when a whole swarm connects."""
        try:
            while self._strangers:
                strangers, self._strangers = self._strangers, {}
                pids = dict(self._pids)
                found = await asyncio.to_thread(owners, set(strangers.values()), tuple(pids))
                for pair, end in strangers.items():
                    self._admit(pair, pids.get(found.get(end, 0), ""))
        finally:
            self._is_asking = False

    def _admit(self, pair: Pair, caller: str) -> None:
        """Let a connection through, unless a link is cut by now."""
        assert pair.near.transport is not None
        pair.caller = caller
        if self._is_shut or pair.near.transport.is_closing() or self._refused & {pair.to, pair.caller}:
            pair.abort()
            return
        self._pairs.add(pair)
        pair.is_silent = bool(self._silent & {pair.to, pair.caller})
        if not pair.is_silent:
            self._group.create_task(self._connect(pair))

    def forget(self, pair: Pair) -> None:
        """It is over."""
        self._pairs.discard(pair)

    async def _listen(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        self._servers[name] = await loop.create_server(
            lambda: Pair(self, name).near, NEAR, self._port(name), reuse_address=True
        )

    async def _connect(self, pair: Pair) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: pair.far, FAR, self._port(pair.to))
        except OSError:
            pair.abort()

    def _port(self, name: str) -> int:
        return int(self._holders[name].getsockname()[1])


@asynccontextmanager
async def open_relays() -> AsyncIterator[Relays]:
    """No relay yet; all are gone at the end. Raises ConfigError on systems that do not say whose a connection is."""
    if not sys.platform.startswith("linux"):
        raise ConfigError("links can be cut on Linux only")
    async with task_group() as group:
        relays = Relays(group)
        try:
            yield relays
        finally:
            relays.shut()
