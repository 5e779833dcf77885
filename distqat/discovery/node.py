"""A node of the DHT: the one owner of everything below it in this flow, and of the tasks that keep it alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from random import Random

from kademlia.node import Node

from distqat.aio import Backoff, Mailbox, supervise
from distqat.discovery.bootstrap import Bootstrap
from distqat.discovery.calls import Contact
from distqat.discovery.crawl import ValueCrawl, lacking
from distqat.discovery.keys import key_id
from distqat.discovery.known import KnownPeers
from distqat.discovery.protocol import Chore, DhtProtocol, DhtSettings
from distqat.discovery.publisher import Publisher
from distqat.discovery.records import SignedRecord, VerifiedRecord
from distqat.discovery.service import Answers
from distqat.discovery.signing import SigningKey, node_id
from distqat.discovery.store import RecordStore
from distqat.discovery.twins import Twins
from distqat.errors import OverloadedError, RecordError
from distqat.ids import Endpoint, PeerId, short
from distqat.rpc.handlers import task_group
from distqat.rpc.transport import Service, Transport

log = logging.getLogger(__name__)

NUM_WORKERS = 4
"""Chores (pings, repairs, parcels for newcomers) that are done at a time."""

MAX_CHORES = 256

REPAIR_PAUSE = 5.0
"""Seconds before the same node is given records under the same key again."""

REPAIR_LEAST = 1.0
"""Seconds that a record must have left to be worth a repair."""

Watcher = Callable[[str], None]


class DhtNode:
    """This daemon's place in the DHT; open it with `DhtNode.open`."""

    def __init__(self, key: SigningKey, protocol: DhtProtocol, first_sequence: int, random: Random) -> None:
        self.peer: PeerId = key.peer
        self._protocol = protocol
        self._random = random
        self._store = protocol.store
        self._publisher = Publisher(key, protocol, first_sequence, self._keep)
        self._twins = Twins(key, first_sequence, protocol)
        self._bootstrap = Bootstrap(protocol, random, self._twins, self._publisher.hasten)
        self._answers = Answers(protocol, self._hear, self._twins.prove)
        self._watchers: list[Watcher] = []
        self._repaired: dict[tuple[bytes, bytes], float] = {}  # Until when (node, key) is left as it is.
        self._group: asyncio.TaskGroup | None = None  # Owns the tasks; None while closed.
        self._running: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        num_nodes = len(self._protocol.router)
        return f"<DhtNode {short(self.peer)} at {self.endpoint}: {num_nodes} nodes, {len(self._store)} records>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        transport: Transport,
        key: SigningKey,
        endpoint: Endpoint,
        first_sequence: int,
        random: Random,
        known: KnownPeers | None = None,
        settings: DhtSettings | None = None,
    ) -> AsyncIterator[DhtNode]:
        """A node that answers at `endpoint` (as others dial it) as soon as its `service` is added to the server there.

        `first_sequence` must be higher than in any earlier life of the key: milliseconds of the wall clock will do. At
        the end own records are withdrawn and known peers saved, in bounded time.
        """
        settings, known = settings or DhtSettings(), known or KnownPeers()
        known.load()
        chores: Mailbox[Chore] = Mailbox("chores of the DHT", MAX_CHORES)
        own = Contact(node_id(key.public_key), endpoint)
        store = RecordStore(settings.caps)
        protocol = DhtProtocol(transport, own, store, known, settings, partial(_defer, chores))
        dht = cls(key, protocol, first_sequence, random)
        async with task_group() as group:
            dht._begin(group, chores)
            try:
                yield dht
            finally:
                await dht._end()

    @property
    def endpoint(self) -> Endpoint:
        """Where others are told that this node answers."""
        return self._protocol.own.endpoint

    @property
    def service(self) -> Service:
        """The answering side, for the server that listens at `endpoint`."""
        return self._answers.service()

    @property
    def bootstrap_state(self) -> dict[Endpoint, str]:
        """What became of each address given to `bootstrap`: "trying", "joined", or why not."""
        return dict(self._bootstrap.state)

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to ask: no other node is known, none was named, and none from before answers."""
        return not self.num_nodes and self._bootstrap.is_hopeless

    @property
    def twin(self) -> Endpoint | None:
        """Where another daemon answers with the key of this one, for longer; None: nowhere, as far as is known."""
        return self._twins.elder

    @property
    def version_refusal(self) -> str:
        """Why nobody can be met: all addresses that were given speak another version of the protocol; else empty."""
        return self._bootstrap.version_refusal

    @property
    def num_nodes(self) -> int:
        """Other nodes in the routing table."""
        return len(self._protocol.router)

    def move(self, endpoint: Endpoint) -> None:
        """This node has learned under which address others reach it."""
        self._protocol.own = Contact(self._protocol.own.id, endpoint)

    def bootstrap(self, endpoints: Iterable[Endpoint]) -> None:
        """Join through these addresses, in the background, each until it answers."""
        for endpoint in self._bootstrap.add(endpoints):
            self._start(f"bootstrap {endpoint}", partial(self._bootstrap.join, endpoint))

    async def wait_joined(self) -> None:
        """Until another node has answered."""
        await self._protocol.joined.wait()

    async def publish(self, key: str, value: bytes, ttl: float) -> int:
        """Say `value` under `key`, and go on saying it until it is withdrawn; raises RecordError if it is too large.

        Returns how many other nodes keep it so far; none is no failure, it is sent again when others are met.
        """
        return await self._publisher.publish(key, value, ttl)

    async def withdraw(self, key: str) -> None:
        """Leave a tombstone where the own record was."""
        await self._publisher.withdraw(key)

    async def lookup(self, key: str) -> list[VerifiedRecord]:
        """All live records under a key, one per author, from the nodes nearest to it; heals those that lack some."""
        where = key_id(key)
        crawl = ValueCrawl(self._protocol, where, self._protocol.settings.replication)
        nodes = await crawl.find()
        for answer in crawl.answers.values():
            for record in answer:
                self._take(record)
        self._publisher.saw(key, self._store.sequence(where, self.peer))
        self._heal(where, nodes, crawl)
        return self.held(key)

    def held(self, key: str) -> list[VerifiedRecord]:
        """The live records under a key that this node holds itself; asks nobody."""
        return self._store.get(key_id(key), asyncio.get_running_loop().time())

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have `watcher(key)` called when the records held under a key change; returns how to end that."""
        self._watchers.append(watcher)
        return partial(self._watchers.remove, watcher)

    def _begin(self, group: asyncio.TaskGroup, chores: Mailbox[Chore]) -> None:
        self._group = group
        for number in range(NUM_WORKERS):
            self._start(f"DHT worker {number}", partial(_work, chores))
        self._start("DHT publisher", self._publisher.keep_alive)
        self._start("DHT refresh", self._bootstrap.keep_fresh)
        self._start("DHT housekeeping", self._keep_house)

    async def _end(self) -> None:
        """Stop the tasks, then say goodbye."""
        self._group = None
        for task in self._running:
            task.cancel()
        try:
            async with asyncio.timeout(self._protocol.settings.leave_timeout):
                await self._publisher.leave()
        except TimeoutError:
            log.info("left the DHT before everybody had heard of it")
        finally:
            self._protocol.known.save()

    def _start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        if self._group is None:
            raise RuntimeError(f"{name}: the node is closed")
        self._running = [task for task in self._running if not task.done()]
        backoff = Backoff(random=self._random)
        self._running.append(self._group.create_task(supervise(name, work, backoff), name=name))

    async def _keep_house(self) -> None:
        """Every second: bury dead records, and save known peers if there are others; who is killed soon needs them."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            for key in self._store.expire(loop.time()):
                self._tell(key)
            self._repaired = {pair: until for pair, until in self._repaired.items() if until > loop.time()}
            self._protocol.known.save()

    def _keep(self, record: SignedRecord) -> None:
        """Into the store; raises RecordError."""
        result = self._store.put(record, asyncio.get_running_loop().time())
        if result.is_new:
            self._tell(result.key)

    def _hear(self, record: SignedRecord) -> None:
        """Into the store what comes from another node; raises RecordError."""
        self._twins.saw(record)
        self._keep(record)

    def _take(self, record: SignedRecord) -> None:
        """Into the store, if it can be believed."""
        try:
            self._hear(record)
        except RecordError as error:
            log.debug("refused what was found: %s", error)

    def _tell(self, key: str) -> None:
        for watcher in list(self._watchers):
            watcher(key)

    def _heal(self, where: bytes, nodes: list[Node], crawl: ValueCrawl) -> None:
        """Give the nearest nodes what they lack, in the background; each at most every few seconds."""
        now = asyncio.get_running_loop().time()
        merged = self._store.signed(where, now)
        for node in nodes:
            missing = lacking(crawl.answers.get(node.id, ()), merged, REPAIR_LEAST)
            if missing and self._repaired.get((node.id, where), 0.0) <= now:
                self._repaired[node.id, where] = now + REPAIR_PAUSE
                self._protocol.give(node, missing)


def _defer(chores: Mailbox[Chore], chore: Chore) -> bool:
    """Do it in the background; False if there is too much to do."""
    try:
        chores.put_nowait(chore)
    except OverloadedError as error:
        log.debug("%s", error)
        return False
    return True


async def _work(chores: Mailbox[Chore]) -> None:
    while True:
        chore = await chores.get()
        await chore()
