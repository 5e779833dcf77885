"""Own records: signed, sent to the nodes nearest to their key, and sent again before they die, until withdrawn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from kademlia.node import Node

from distqat.discovery.crawl import NodeCrawl
from distqat.discovery.keys import key_id
from distqat.discovery.protocol import DhtProtocol
from distqat.discovery.records import Body, SignedRecord
from distqat.discovery.signing import SigningKey, seal

log = logging.getLogger(__name__)

SPARE_HOMES = 4
"""Nodes beyond the wanted copies that are looked for, in case some do not answer."""

HOMES_LIFE = 60.0
"""Seconds after which the nodes nearest to a key are looked for again, even if they seem to be the same."""

FIRST_LEAP = 1 << 16
"""How far sequence numbers leap when everybody refuses one (the clock that gave the first one was set back)."""

MAX_LEAP = 1 << 32


@dataclass
class _Own:
    """A record that is to be kept alive."""

    value: bytes
    ttl: float
    due: float  # When it is sent again.
    homes: list[Node] = field(default_factory=list)  # Nodes nearest to its key; empty: to be found.
    found: float = 0.0  # When they were found.
    sequence: int = 0  # Of what was signed last.


class Publisher:
    """All records of this node."""

    def __init__(
        self,
        key: SigningKey,
        protocol: DhtProtocol,
        first_sequence: int,
        keep: Callable[[SignedRecord], object],
    ) -> None:
        self._key = key
        self._protocol = protocol
        self._keep = keep  # Takes a record into the own store.
        self._sequence = first_sequence  # Of the record signed last; grows across all keys.
        self._leap = FIRST_LEAP
        self._own: dict[str, _Own] = {}
        self._changed = asyncio.Event()  # Set when something may have become due.

    def __repr__(self) -> str:
        return f"<Publisher {', '.join(self._own) or 'nothing'}>"

    async def publish(self, key: str, value: bytes, ttl: float) -> int:
        """Say it from now on under that key; returns how many other nodes keep it so far."""
        now = asyncio.get_running_loop().time()
        own = _Own(value, ttl, now + ttl / 3)
        if key in self._own:
            own.homes, own.found = self._own[key].homes, self._own[key].found
        record = self._sign(key, own)
        self._own[key] = own
        self._changed.set()
        return await self._say(key, own, record)

    async def withdraw(self, key: str) -> None:
        """Say it no more: a tombstone goes to whoever may hold the record."""
        own = self._own.pop(key, None)
        if own is not None:
            await self._send(key, own, self._sign(key, own, tombstone=True))

    async def leave(self) -> None:
        """Withdraw everything at once."""
        async with asyncio.TaskGroup() as group:
            for key in list(self._own):
                group.create_task(self.withdraw(key), name=f"withdraw {key}")

    def hasten(self) -> None:
        """Other nodes have been met: send everything again, to whoever is nearest now."""
        for own in self._own.values():
            own.due, own.homes = 0.0, []
        self._changed.set()

    def saw(self, key: str, sequence: int) -> None:
        """A record of this node came back from others; one from an earlier life must not outdo the present one."""
        if sequence > self._sequence and key in self._own:
            self._own[key].due = 0.0
            self._changed.set()

    async def keep_alive(self) -> None:
        """Send again whatever is due, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            due = [(key, own) for key, own in self._own.items() if own.due <= loop.time()]
            async with asyncio.TaskGroup() as group:
                for key, own in due:
                    own.due = loop.time() + own.ttl / 3
                    if self._homes_may_have_changed(key, own, loop.time()):
                        own.homes = []
                    group.create_task(self._say(key, own, self._sign(key, own)), name=f"publish {key}")
            soonest = min((own.due for own in self._own.values()), default=None)
            try:
                async with asyncio.timeout_at(soonest):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _say(self, key: str, own: _Own, record: SignedRecord) -> int:
        sequence = own.sequence
        kept, refused = await self._send(key, own, record)
        if sequence != own.sequence or own is not self._own.get(key):
            return kept  # Something newer has been said meanwhile, and may have overtaken this.
        if kept or not refused:
            self._leap = FIRST_LEAP
            return kept
        log.warning("all nodes refuse %s, it will be sent again under a higher number: %s", key, refused[0])
        self._sequence += self._leap
        self._leap = min(2 * self._leap, MAX_LEAP)
        own.due = asyncio.get_running_loop().time() + self._protocol.settings.rpc_timeout
        self._changed.set()
        return 0

    def _sign(self, key: str, own: _Own, tombstone: bool = False) -> SignedRecord:
        """The record as it is now, under the next number, so that the latest that is signed is also the truest."""
        self._sequence = 1 + max(self._sequence, self._protocol.store.sequence(key_id(key), self._key.peer))
        record = seal(self._key, Body(key, self._sequence, own.ttl, tombstone, b"" if tombstone else own.value))
        self._keep(record)
        own.sequence = self._sequence
        return record

    def _homes_may_have_changed(self, key: str, own: _Own, now: float) -> bool:
        """Whether a crawl is worth its calls: too few are left, nearer ones are known, or much time has passed."""
        wanted = self._protocol.settings.replication
        homes = {node.id for node in own.homes}
        near = {node.id for node in self._protocol.nearest(key_id(key), wanted)}
        return len(homes) < wanted or not near <= homes or now - own.found > HOMES_LIFE

    async def _send(self, key: str, own: _Own, record: SignedRecord) -> tuple[int, list[str]]:
        """Give it to the nearest nodes until enough keep it; how many do, and why others do not."""
        wanted = self._protocol.settings.replication
        if not own.homes:
            own.homes = await self._find_homes(key_id(key), wanted + SPARE_HOMES)
            own.found = asyncio.get_running_loop().time()
        left, kept, refused = list(own.homes), 0, list[str]()
        while left and kept < wanted:
            wave, left = left[: wanted - kept], left[wanted - kept :]
            async with asyncio.TaskGroup() as group:
                stores = [group.create_task(self._protocol.call_store(node, [record])) for node in wave]
            for _, reply in [store.result() for store in stores]:
                if reply is not None:
                    kept += reply.kept
                    refused += reply.refused
        own.homes = [node for node in own.homes if not self._protocol.router.is_new_node(node)]
        return kept, refused

    async def _find_homes(self, where: bytes, count: int) -> list[Node]:
        """The nearest nodes that are found or known; one that failed in the crawl may do better next time."""
        found = await NodeCrawl(self._protocol, where, count).find()
        known = self._protocol.nearest(where, count)
        both = {node.id: node for node in (*known, *found)}
        return sorted(both.values(), key=Node(where).distance_to)[:count]
