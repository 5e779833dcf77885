"""One daemon, put together: the only place that knows every room.

The order of closing is the order of nesting: roles first, then what they announced, then the DHT, then the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distqat import __version__
from distqat.aio import Backoff, supervise
from distqat.config import Settings
from distqat.discovery.directory import Directory
from distqat.discovery.known import KnownPeers
from distqat.discovery.node import DhtNode
from distqat.discovery.records import ConfigRecord, PeerRecord
from distqat.errors import DistqatError, GivenUpError
from distqat.event_log import EventLog, file_name
from distqat.events import Kind
from distqat.ids import Endpoint, PeerId, short
from distqat.peer.addresses import announced
from distqat.peer.control import Control
from distqat.peer.identity import Identity
from distqat.peer.joining import Joining
from distqat.peer.resuming import insist
from distqat.peer.roster import Roster
from distqat.peer.vetting import vet
from distqat.roles.context import Heartbeat, RoleContext, RoleOptions, RunHolder
from distqat.roles.history import History
from distqat.rpc.breaking import BreakableTransport
from distqat.rpc.transport import Bytes, Transport
from distqat.telemetry import Reason, Telemetry

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 0.5

TRAFFIC_SECONDS = 5.0

PATRONS = {"client", "monitor"}
"""Roles whose holders hand out the run's config."""


@dataclass(frozen=True)
class PeerOrder:
    """What a daemon is asked to be."""

    settings: Settings
    identity: Identity
    roles: tuple[str, ...]
    join: tuple[Endpoint, ...]
    stage: int | None
    brings_run: bool
    resumes: bool = False
    """Go on with the run, or leave."""


class Peer:
    """A running daemon."""

    def __init__(
        self,
        context: RoleContext,
        roster: Roster,
        control: Control,
        joining: Joining,
        leaving: asyncio.Event,
    ) -> None:
        self.context = context
        self.roster = roster
        self.control = control
        self.joining = joining
        self._leaving = leaving
        self.fault: DistqatError | None = None  # Why the daemon cannot go on; None while it can.

    def __repr__(self) -> str:
        return f"<Peer {short(self.context.me)} at {self.context.endpoint}: {self.roster!r}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, order: PeerOrder, transport: Transport, leaving: asyncio.Event) -> AsyncIterator[Peer]:
        """Listen first, join in the background, take the roles; leave everything in the opposite order.

        `leaving` is set when somebody asks the daemon to drain. Raises CannotListenError, ConfigError.
        """
        settings, identity = order.settings, order.identity
        transport = BreakableTransport(transport)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(transport.serve(Endpoint.parse(settings.daemon.listen)))
            endpoint = announced(settings.daemon.announce, server.endpoint, order.join)
            run, reason = RunHolder(), Reason(log, "starting")
            if order.brings_run:
                run.set(settings.run_config())
            born = time.time_ns() // 1_000_000  # Greater than any number that an earlier life of this daemon has used.
            events = stack.enter_context(_open_events(identity.peer, born))
            dht = await stack.enter_async_context(_open_node(transport, identity, endpoint, born))
            server.add(dht.service)
            directory = await stack.enter_async_context(Directory.open(dht, run.id))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            context = RoleContext(
                me=identity.peer,
                endpoint=endpoint,
                transport=transport,
                server=server,
                directory=directory,
                telemetry=Telemetry(born, events=events),
                settings=settings,
                run=run,
                heartbeat=Heartbeat(),
                state_dir=identity.folder,
                take_role=lambda name: roster.add(name),
                lose=partial(lose, directory, transport),
                history=History(identity.folder),
                beside=lambda name: roster.find(name),
                resumes=order.resumes,
            )
            roster = await stack.enter_async_context(Roster.open(context))
            joining = Joining(context, dht, reason)
            peer = cls(context, roster, Control(context, roster, reason, leaving), joining, leaving)
            server.add(peer.control.service())
            log.info("peer %s listens on %s, dial %s", short(context.me), server.endpoint, endpoint)
            events.record(Kind.STARTED, f"distqat {__version__} listens on {server.endpoint}, dial {endpoint}")
            identity.write_endpoint(endpoint)
            dht.bootstrap(order.join)
            tasks = [
                group.create_task(vet(dht, peer.end)),
                group.create_task(supervise("joining", joining.work, Backoff())),
                group.create_task(supervise("keeping events", peer.keep_events, Backoff())),
                group.create_task(supervise("announcing", peer.announce, Backoff())),
                group.create_task(supervise("counting traffic", peer.count_traffic, Backoff())),
                *(group.create_task(peer.take(role, order.stage)) for role in order.roles),
                *([group.create_task(insist(context, peer.end))] if order.resumes else []),
            ]
            reason.set(f"working for run {run.id}" if run.id is not None else "joining")
            try:
                yield peer
            finally:
                for task in tasks:
                    task.cancel()

    def end(self, fault: DistqatError) -> None:
        """The daemon cannot go on, for this reason: let it drain."""
        self.fault = fault
        self._leaving.set()

    async def take(self, role: str, stage: int | None) -> None:
        """Take a role that was asked for at the start, however long that lasts."""
        try:
            await supervise(f"taking {role}", partial(self.roster.add, role, RoleOptions(stage)), Backoff(1.0, 10.0))
        except GivenUpError as error:
            # The daemon lives on without it; the status says why, and `distqatctl role add` tries again.
            log.warning("%s", error)

    async def announce(self) -> None:
        """Keep telling the swarm that this daemon is here, and with which roles."""
        context = self.context
        while True:
            run = context.run.id
            # As long as one daemon of the run lives, nobody founds it a second time.
            committed = run is not None and context.history.has_committed(run, context.directory.snapshot())
            record = PeerRecord(context.endpoint, self.roster.names(), run, __version__, committed)
            context.directory.announce(record)
            if run is not None and PATRONS & set(record.roles):
                context.directory.announce(ConfigRecord(run, context.endpoint))
            await asyncio.sleep(ANNOUNCE_SECONDS)

    async def keep_events(self) -> None:
        """Write events into the folder of the run, as soon as it is known; what came before is not left out."""
        context = self.context
        config = await context.run.wait()
        folder = Path(context.settings.daemon.log_dir) / config.run.name
        context.telemetry.events.keep_in(folder / file_name(short(context.me)))

    async def count_traffic(self) -> None:
        """Put the bytes of each flow into the metrics, whenever there were some."""
        context, told = self.context, dict[str, Bytes]()
        while True:
            for flow, count in context.transport.traffic().items():
                if told.get(flow) != count:
                    told[flow] = count
                    context.telemetry.record(
                        "traffic", {"flow": flow}, {"sent": count.sent, "received": count.received}
                    )
            await asyncio.sleep(TRAFFIC_SECONDS)

    async def drain(self) -> None:
        """Give all roles back in good order."""
        self.joining.leave()
        await self.roster.drain()


def lose(directory: Directory, transport: BreakableTransport, peer: PeerId, at: Endpoint, reason: str) -> None:
    """See `RoleContext.lose`. What is under way to another peer, which has the address now, goes on."""
    directory.mark_lost(peer, reason)
    snapshot = directory.snapshot()
    if all(
        entry.record.endpoint != at for other, entry in snapshot.peers.items() if other not in (peer, *snapshot.lost)
    ):
        transport.break_off(at, f"it is lost: {reason}")


@contextmanager
def _open_events(peer: PeerId, serial: int) -> Iterator[EventLog]:
    """The daemon's events; the last one is told only if it leaves in good order."""
    events = EventLog(peer, serial)
    try:
        yield events
        events.record(Kind.ENDED, "has left in good order")
    finally:
        events.close()


def _open_node(
    transport: Transport, identity: Identity, endpoint: Endpoint, first_sequence: int
) -> AbstractAsyncContextManager[DhtNode]:
    known = KnownPeers(identity.folder / "known_peers.json")
    return DhtNode.open(transport, identity.key, endpoint, first_sequence, random.Random(os.urandom(16)), known)
