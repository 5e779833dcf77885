"""Kademlia's four calls over our transport, and the routing table that they keep true.

The `kademlia` package's table and crawlers call what is here as they would call its own protocol over UDP. A node is
believed to be where it says only after it has answered from there; one that fails is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from kademlia.node import Node
from kademlia.routing import RoutingTable

from distqat.discovery import messages
from distqat.discovery.calls import (
    Contact,
    FindRequest,
    FindValueReply,
    PingReply,
    PingRequest,
    StoreReply,
    StoreRequest,
)
from distqat.discovery.known import KnownPeers
from distqat.discovery.records import SignedRecord
from distqat.discovery.store import RecordStore, StoreCaps
from distqat.errors import DistqatError, RefusedError
from distqat.ids import Endpoint
from distqat.rpc.transport import Deadline, Method, Transport

log = logging.getLogger(__name__)

MAX_FAILURES = 2
"""Failed calls in a row after which a node is forgotten; a single one may be the network's fault."""

SILENCE = 30.0
"""Seconds for which a node that did not answer where it said is not asked again."""

MAX_SILENT = 1024
"""Such nodes that are remembered."""

MAX_HANDED_OVER = 256
"""Records that are sent to a newcomer."""

Chore = Callable[[], Awaitable[None]]
"""Something to do in the background, soon, or never when there is too much of it."""


@dataclass(frozen=True)
class DhtSettings:
    """Sizes of Kademlia (`bucket` is its k) and times in seconds; the defaults suit swarms of any size."""

    bucket: int = 20
    alpha: int = 3
    replication: int = 8
    rpc_timeout: float = 2.0
    refresh: float = 20.0
    backoff: float = 10.0
    leave_timeout: float = 2.0
    caps: StoreCaps = field(default_factory=StoreCaps)


class Reply(Protocol):
    """Every answer says whose it is."""

    @property
    def responder(self) -> bytes: ...


A = TypeVar("A", bound=Reply)


class Table(RoutingTable):  # type: ignore[misc]  # The package has no types.
    """The package's routing table, which starts no task of its own and finds exactly the nearest."""

    def __init__(self, own: Node, bucket: int, on_full: Callable[[Node], None]) -> None:
        super().__init__(None, bucket, own)
        self._on_full = on_full  # Told of the longest unseen node of a full bucket, which should be pinged.

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def add_contact(self, node: Node) -> None:
        """The node was heard of just now; it waits as a replacement when its bucket is full."""
        index = self.get_bucket_for(node)
        bucket = self.buckets[index]
        if bucket.add_node(node):
            return
        if bucket.has_in_range(self.node) or bucket.depth() % 5 != 0:
            self.split_bucket(index)
            self.add_contact(node)
        else:
            self._on_full(bucket.head())

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[Node]:
        """The `k` known nodes nearest to a place, nearest first."""
        place: int = node.long_id
        known = self.nodes() if exclude is None else [other for other in self.nodes() if other.id != exclude.id]
        known.sort(key=lambda other: int(other.long_id) ^ place)
        return known[: k or self.ksize]

    def find(self, node_id: bytes) -> Node | None:
        """The node of that id, if it is known."""
        return next((bucket[node_id] for bucket in self.buckets if bucket[node_id] is not None), None)

    def nodes(self) -> list[Node]:
        """All known nodes."""
        return [node for bucket in self.buckets for node in bucket.get_nodes()]


class DhtProtocol:
    """The asking side; `service.py` answers."""

    def __init__(
        self,
        transport: Transport,
        own: Contact,
        store: RecordStore,
        known: KnownPeers,
        settings: DhtSettings,
        defer: Callable[[Chore], bool],
    ) -> None:
        self.transport = transport
        self.own = own
        self.store = store
        self.known = known
        self.settings = settings
        self.joined = asyncio.Event()  # Set once another node has answered.
        self.alone = asyncio.Event()  # Set when the last known node was forgotten.
        self.router = Table(to_node(own), settings.bucket, self._doubt)
        self.defer = defer  # Takes a chore; False if there is no room for it.
        self._failures: dict[bytes, int] = {}  # Failed calls in a row, by id, of nodes in the table.
        self._meeting: set[Contact] = set()  # Nodes that are being pinged, because they asked us something.
        self._silent: dict[Contact, float] = {}  # Until when these are not pinged again, because they did not answer.

    def __repr__(self) -> str:
        return f"<DhtProtocol {self.own.id.hex()[:8]}: {len(self.router)} nodes>"

    def nearest(self, target: bytes, count: int | None = None, exclude: bytes | None = None) -> list[Node]:
        """The known nodes nearest to a place, nearest first; Kademlia's k of them unless said otherwise."""
        return self.router.find_neighbors(Node(target), count, Node(exclude) if exclude is not None else None)

    # What the crawlers call: (has answered, answer).

    async def call_ping(self, node: Node) -> tuple[bool, bytes | None]:
        """Is it there? The answer is its id."""
        request = messages.encode_ping_request(PingRequest(self.own))
        reply = await self._ask(node, messages.PING, request, messages.decode_ping_reply)
        return reply is not None, reply.responder if reply is not None else None

    async def call_store(self, node: Node, records: list[SignedRecord]) -> tuple[bool, StoreReply | None]:
        """Keep these; at most `messages.MAX_STORED`."""
        request = messages.encode_store_request(StoreRequest(self.own, tuple(records)))
        reply = await self._ask(node, messages.STORE, request, messages.decode_store_reply)
        return reply is not None, reply

    async def call_find_node(self, node: Node, target: Node) -> tuple[bool, list[tuple[bytes, str, int]]]:
        """The nodes near the target that it knows, as the package wants them."""
        request = messages.encode_find_node_request(FindRequest(self.own, target.id))
        reply = await self._ask(node, messages.FIND_NODE, request, messages.decode_find_node_reply)
        return reply is not None, self.others(reply.nodes) if reply is not None else []

    async def call_find_value(self, node: Node, target: Node) -> tuple[bool, FindValueReply | None]:
        """The records under the target that it holds, and the nodes near it that it knows."""
        request = messages.encode_find_value_request(FindRequest(self.own, target.id))
        reply = await self._ask(node, messages.FIND_VALUE, request, messages.decode_find_value_reply)
        return reply is not None, reply

    def others(self, contacts: tuple[Contact, ...]) -> list[tuple[bytes, str, int]]:
        """The nodes but this one, as the package wants them."""
        return [(one.id, one.endpoint.host, one.endpoint.port) for one in contacts if one.id != self.own.id]

    async def greet(self, endpoint: Endpoint, nonce: bytes) -> PingReply:
        """Meet whoever answers at an address; raises what went wrong. This node itself is no error.

        The nonce is for a node of the same id, which says how long it lives.
        """
        request = messages.encode_ping_request(PingRequest(self.own, nonce))
        deadline = Deadline.after(self.settings.rpc_timeout)
        reply = messages.decode_ping_reply(await self.transport.call(endpoint, messages.PING, request, deadline))
        found = reply.node
        if found.id == self.own.id:
            return reply
        # If the address that it announces works too, others should hear of that one.
        if found.endpoint == endpoint or not (await self.call_ping(to_node(found)))[0]:
            self.welcome(Node(found.id, endpoint.host, endpoint.port))
        return reply

    def heard(self, sender: Contact) -> None:
        """Somebody has asked us something and says where it answers; ping it there before telling others."""
        now = asyncio.get_running_loop().time()
        known = self.router.find(sender.id)
        if sender.id == self.own.id or (known is not None and to_contact(known) == sender):
            return
        if sender in self._meeting or self._silent.get(sender, 0.0) > now:
            return
        if self.defer(partial(self._meet, sender)):
            self._meeting.add(sender)

    def welcome(self, node: Node) -> None:
        """The node has answered."""
        self._failures.pop(node.id, None)
        was_new = self.router.is_new_node(node)
        self.router.add_contact(node)
        self.known.seen(to_contact(node).endpoint)
        if was_new and not self.router.is_new_node(node):
            log.debug("met node %s at %s", node.id.hex()[:8], node)
            self.defer(partial(self._hand_over, node))
        self.joined.set()

    async def _ask(self, node: Node, method: Method, request: bytes, decode: Callable[[bytes], A]) -> A | None:
        """The answer, or None if there was none that can be believed."""
        endpoint = to_contact(node).endpoint
        try:
            deadline = Deadline.after(self.settings.rpc_timeout)
            reply = decode(await self.transport.call(endpoint, method, request, deadline))
            if reply.responder != node.id:
                raise RefusedError(f"another node answers at {endpoint} now")
        except DistqatError as error:
            self._failed(node, error)
            return None
        self.welcome(node)
        return reply

    def _failed(self, node: Node, error: DistqatError) -> None:
        if self.router.is_new_node(node):
            return
        failures = self._failures[node.id] = self._failures.get(node.id, 0) + 1
        if failures >= MAX_FAILURES or not error.retriable:
            log.debug("forget node %s: %s", node.id.hex()[:8], error)
            self.router.remove_contact(node)
            self._failures.pop(node.id, None)
            if not len(self.router):
                self.alone.set()

    def give(self, node: Node, records: list[SignedRecord]) -> None:
        """Store these at a node, in the background; at most `messages.MAX_STORED`."""

        async def store() -> None:
            await self.call_store(node, records)

        self.defer(store)

    def _doubt(self, node: Node) -> None:
        """Its bucket is full: if it does not answer, another takes its place."""

        async def ping() -> None:
            await self.call_ping(node)

        self.defer(ping)

    async def _meet(self, sender: Contact) -> None:
        """Ping a node that asked us something; one that is known elsewhere is first looked for there."""
        try:
            known = self.router.find(sender.id)
            is_elsewhere = known is not None and (await self.call_ping(known))[0]
            if is_elsewhere or not (await self.call_ping(to_node(sender)))[0]:
                while len(self._silent) >= MAX_SILENT:
                    del self._silent[next(iter(self._silent))]
                self._silent[sender] = asyncio.get_running_loop().time() + SILENCE
        finally:
            self._meeting.discard(sender)

    async def _hand_over(self, newcomer: Node) -> None:
        """Give a newcomer the records that it should hold, if this node is the nearest of the others that do."""
        now = asyncio.get_running_loop().time()
        parcel: list[SignedRecord] = []
        for where in list(self.store.keys()):
            key = Node(where)
            holders = self.router.find_neighbors(key, self.settings.replication)
            others = [node for node in holders if node.id != newcomer.id]
            own_distance = self.router.node.distance_to(key)
            if len(others) < len(holders) and all(own_distance < node.distance_to(key) for node in others):
                parcel += self.store.signed(where, now)
        for start in range(0, min(len(parcel), MAX_HANDED_OVER), messages.MAX_STORED):
            await self.call_store(newcomer, parcel[start : start + messages.MAX_STORED])


def to_node(contact: Contact) -> Node:
    """As the package knows it."""
    return Node(contact.id, contact.endpoint.host, contact.endpoint.port)


def to_contact(node: Any) -> Contact:
    """As we know it."""
    return Contact(node.id, Endpoint(node.ip, node.port))
