"""A small swarm of DHT nodes on a network in memory, and records to put into them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random

from distqat.discovery.known import KnownPeers
from distqat.discovery.node import DhtNode
from distqat.discovery.protocol import DhtSettings
from distqat.discovery.records import Body, SignedRecord
from distqat.discovery.signing import SigningKey, seal
from distqat.ids import Endpoint
from distqat.rpc.local import Network

PORT = 7000


def a_key(seed: int) -> SigningKey:
    """The same key for the same seed."""
    return SigningKey.generate(Random(seed))


def a_record(
    author: int = 1, key: str = "peers", sequence: int = 1, ttl: float = 10.0, value: bytes = b"hello"
) -> SignedRecord:
    """A record signed by the author of that seed."""
    return seal(a_key(author), Body(key, sequence, ttl, False, value))


def a_tombstone(author: int = 1, key: str = "peers", sequence: int = 2, ttl: float = 10.0) -> SignedRecord:
    """A tombstone signed by the author of that seed."""
    return seal(a_key(author), Body(key, sequence, ttl, True))


def forged(record: SignedRecord, author: int = 2) -> SignedRecord:
    """The record as if another peer had signed it."""
    return replace(record, public_key=a_key(author).public_key)


def address(number: int) -> Endpoint:
    """Where node `number` answers."""
    return Endpoint(f"host{number}", PORT)


@asynccontextmanager
async def a_node(
    network: Network,
    number: int,
    join: Iterable[int] = (),
    settings: DhtSettings | None = None,
    known: KnownPeers | None = None,
    life: int = 1,
) -> AsyncIterator[DhtNode]:
    """Node `number`, serving on its own host; its key follows from the number."""
    transport = network.transport(f"host{number}")
    async with (
        transport.serve(address(number)) as server,
        DhtNode.open(
            transport, a_key(number), server.endpoint, 1000 * life, Random(f"{number} {life}"), known, settings
        ) as dht,
    ):
        server.add(dht.service)
        dht.bootstrap(address(other) for other in join)
        yield dht


@asynccontextmanager
async def a_swarm(
    network: Network, count: int, settings: DhtSettings | None = None, first: int = 0
) -> AsyncIterator[list[DhtNode]]:
    """So many nodes; all but the first join through the first."""
    async with AsyncExitStack() as stack:
        nodes: list[DhtNode] = []
        for number in range(first, first + count):
            join = [first] if nodes else []
            nodes.append(await stack.enter_async_context(a_node(network, number, join, settings)))
        for node in nodes[1:]:
            await node.wait_joined()
        yield nodes


def values(found: Iterable[object]) -> list[bytes]:
    """The values of verified records, sorted."""
    return sorted(record.value for record in found)  # type: ignore[attr-defined]
