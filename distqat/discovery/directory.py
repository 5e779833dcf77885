"""Who serves what now: the only thing of discovery that roles see.

News come in two ways: records that others store at this node tell at once, and the run's keys are looked up, often
while something changes and seldom while nothing does. Own records are announced here, and seen in the own snapshot at
once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from distqat.aio import Backoff, supervise
from distqat.discovery import keys
from distqat.discovery.announcer import Announcer
from distqat.discovery.messages import decode_record
from distqat.discovery.node import DhtNode
from distqat.discovery.records import ClientRecord, ConfigRecord, ExpertRecord, PeerRecord, Record, TrainerRecord
from distqat.discovery.records import substance as substance_of
from distqat.discovery.view import Entry, Snapshot, View
from distqat.errors import MessageError, RecordError
from distqat.ids import PeerId, RunId
from distqat.rpc.handlers import task_group
from distqat.rpc.transport import Deadline

log = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between two looks while something changes."""

CALM = 8
"""By how much the interval grows while nothing changes."""

RECORD_TTL = 15.0
"""Seconds after which a peer that has vanished without a word is out of the directory, if nobody notices before."""


class Directory:
    """The swarm as this daemon sees it; open it with `Directory.open`."""

    def __init__(self, dht: DhtNode, run: RunId | None, interval: float) -> None:
        self._dht = dht
        self._run = run
        self._interval = interval
        self._view = View(dht.peer)
        self._snapshot = Snapshot(run=run)
        self._changed = asyncio.Event()  # Set, and replaced, when the snapshot's version grows.
        self._hurry = asyncio.Event()  # Set when the next look should not wait.
        self._unread: set[str] = set()  # Keys under which something has changed since they were read.
        self._calm = 1.0  # How many intervals lie between two looks now.
        self._synced = asyncio.Event()  # Set once everything that is followed was looked up with the swarm's help.
        self._announcer: Announcer | None = None  # None before the tasks have begun.

    def __repr__(self) -> str:
        return f"<Directory {self._snapshot!r}>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls, dht: DhtNode, run: RunId | None, interval: float = INTERVAL, ttl: float = RECORD_TTL
    ) -> AsyncIterator[Directory]:
        """A directory that follows the swarm (and the run, if one is chosen) until the end of the block.

        `ttl` is the life of own records in seconds; they are withdrawn when the node of the DHT closes.
        """
        directory = cls(dht, run, interval)
        unwatch = dht.watch(directory._stored)
        try:
            async with task_group() as group:
                directory._announcer = Announcer(dht, group, ttl)
                follow = supervise("directory", directory._follow, Backoff())
                task = group.create_task(follow, name="directory")
                try:
                    yield directory
                finally:
                    task.cancel()
                    directory._announcer.close()
        finally:
            unwatch()

    @property
    def run(self) -> RunId | None:
        """The run that is followed."""
        return self._run

    def snapshot(self) -> Snapshot:
        """Who serves what now."""
        return self._snapshot

    async def wait_changed(self, since_version: int, deadline: Deadline) -> Snapshot:
        """The snapshot once its version is above `since_version`, or as it is at the deadline."""
        try:
            async with asyncio.timeout_at(deadline.at):
                while self._snapshot.version <= since_version:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self._snapshot

    async def wait_synced(self) -> None:
        """Until the run's records have been looked up once since it was chosen, and another node has answered.

        A daemon that was given no address, and of whose peers from before none answers, does not wait.
        """
        await self._synced.wait()

    def use_run(self, run: RunId) -> None:
        """Follow this run from now on."""
        if run == self._run:
            return
        for kind in (ConfigRecord, ExpertRecord, TrainerRecord, ClientRecord) if self._run is not None else ():
            self.withdraw(kind)
        self._view.forget(self._kinds().keys() - {keys.PEERS})
        self._run = run
        self._synced.clear()
        self._read_all()
        self.look_now()

    def look_now(self) -> None:
        """Somebody waits for something: look up everything at once, and often for a while."""
        self._calm = 1.0
        self._hurry.set()

    def mark_lost(self, peer: PeerId, reason: str) -> None:
        """The peer is gone, until it signs a newer record; the reason is one sentence."""
        self._view.mark_lost(peer, reason, asyncio.get_running_loop().time())
        self._refresh()

    def announce(self, record: Record) -> None:
        """Say this of the own peer: seen here at once, by others soon. The latest of each kind counts.

        Raises RecordError for a kind that belongs to a run while none is chosen.
        """
        places = self._places(record)
        self._view.announce(record)
        self._refresh()
        assert self._announcer is not None
        for key in places:
            self._announcer.say(key, record)

    def withdraw(self, kind: type[Record]) -> None:
        """Say nothing of that kind any more."""
        self._view.withdraw(kind)
        self._refresh()
        assert self._announcer is not None
        self._announcer.hush(kind)

    def _places(self, record: Record) -> list[str]:
        """The keys under which an own record belongs."""
        if isinstance(record, PeerRecord):
            return [keys.PEERS]
        if isinstance(record, ConfigRecord):
            return [keys.RUNS, keys.config(record.run)]
        if self._run is None:
            raise RecordError(f"a {type(record).__name__} belongs to a run, and none is chosen")
        if isinstance(record, ExpertRecord):
            return [keys.experts(self._run, keys.expert_shard(self._dht.peer))]
        return [keys.trainers(self._run) if isinstance(record, TrainerRecord) else keys.clients(self._run)]

    def _kinds(self) -> dict[str, type[Any]]:
        """The keys that are followed, and what lies under each."""
        run = self._run
        if run is None:
            return {keys.PEERS: PeerRecord, keys.RUNS: ConfigRecord}
        experts = {keys.experts(run, shard): ExpertRecord for shard in range(keys.EXPERT_SHARDS)}
        rest = {keys.config(run): ConfigRecord, keys.trainers(run): TrainerRecord, keys.clients(run): ClientRecord}
        return {keys.PEERS: PeerRecord, **experts, **rest}

    def _stored(self, key: str) -> None:
        """Something under this key has changed in the own store; what comes at once is read at once."""
        if key not in self._kinds():
            return
        if not self._unread:
            asyncio.get_running_loop().call_soon(self._read_news)
        self._unread.add(key)

    def _read_all(self) -> None:
        self._unread.update(self._kinds())
        self._read_news()

    def _read_news(self) -> None:
        for key in self._unread & self._kinds().keys():
            self._fold(key)
        self._unread.clear()
        self._refresh()

    def _fold(self, key: str) -> None:
        """Read what the own store holds under a followed key."""
        kind, entries = self._kinds()[key], list[Entry[Any]]()
        read = self._view.found(key)
        for found in self._dht.held(key):
            known = read.get(found.author)
            if known is not None and known.sequence == found.sequence:
                entries.append(known)
                continue
            try:
                record = decode_record(kind, found.value)
            except MessageError as error:
                log.debug("%s of %s is no record: %s", key, found.author, error)
                continue
            if not isinstance(record, ConfigRecord) or self._run in (None, record.run):
                entries.append(Entry(found.author, found.sequence, record))
        self._view.fold(key, kind, entries)

    def _refresh(self) -> None:
        """Make a new snapshot; tell the waiters if it says something new."""
        old = self._snapshot
        new = self._view.compose(old.version, self._run, asyncio.get_running_loop().time())
        before, after = old.records(), new.records()
        if before == after and old.lost == new.lost and old.run == new.run:
            self._snapshot = new
            return
        if {one: substance_of(record) for one, record in before.items()} != {
            one: substance_of(record) for one, record in after.items()
        }:
            self._calm = 1.0
        self._snapshot = replace(new, version=old.version + 1)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _follow(self) -> None:
        """Look up all followed keys, for ever; what is found tells by itself."""
        loop = asyncio.get_running_loop()
        num_nodes = 0
        self._read_all()
        while True:
            began, run = loop.time(), self._run
            is_of_use = self._dht.num_nodes > 0 or self._dht.is_alone
            self._hurry.clear()
            async with asyncio.TaskGroup() as group:
                for key in self._kinds():
                    group.create_task(self._dht.lookup(key), name=f"look up {key}")
            self._refresh()
            if is_of_use and run == self._run:
                self._synced.set()
            if self._dht.num_nodes != num_nodes or not num_nodes:
                num_nodes, self._calm = self._dht.num_nodes, 1.0
            pause = self._interval * self._calm
            self._calm = min(self._calm * 1.5, float(CALM))
            try:
                async with asyncio.timeout_at(began + pause):
                    await self._hurry.wait()
            except TimeoutError:
                continue
