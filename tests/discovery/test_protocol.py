"""Kademlia's calls over our transport, and the routing table that they keep true."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kademlia.node import Node

from distqat.discovery import messages
from distqat.discovery.calls import Contact, PingReply, PingRequest
from distqat.discovery.protocol import MAX_FAILURES, DhtSettings, Table
from distqat.errors import MessageError
from distqat.ids import Endpoint
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Deadline, Service
from tests.discovery.helpers import a_node, a_swarm, address
from tests.support import run_virtual, until


@settings(max_examples=30, deadline=None)
@given(st.sets(st.binary(min_size=20, max_size=20), max_size=60), st.binary(min_size=20, max_size=20))
def test_the_table_finds_exactly_the_nearest(ids: set[bytes], target: bytes) -> None:
    table = Table(Node(bytes(20)), 60, lambda node: None)
    for node_id in ids:
        table.add_contact(Node(node_id, "host", 1))
    place = Node(target)
    expected = sorted(ids, key=lambda one: Node(one).distance_to(place))[:8]
    assert [node.id for node in table.find_neighbors(place, 8)] == expected
    assert len(table) == len(ids)


def test_a_full_bucket_doubts_the_one_that_was_silent_longest() -> None:
    doubted: list[Node] = []
    own = Node(bytes(20))
    table = Table(own, 2, doubted.append)
    far = [Node(bytes([first]) + bytes(19), "host", first) for first in (0xF8, 0xFC, 0xF9, 0xFD, 0xFE)]
    for node in far:
        table.add_contact(node)
    assert doubted
    assert doubted[0].id == far[0].id
    assert len(table) < 5, "the rest waits as replacements"


def test_a_node_that_fails_again_and_again_is_forgotten() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_swarm(network, 3) as nodes:
            protocol = nodes[0]._protocol
            await until(lambda: nodes[0].num_nodes == 2)
            victim = protocol.router.find(bytes.fromhex(nodes[2].peer))
            assert victim is not None
            network.crash("host2")
            for failure in range(MAX_FAILURES):
                assert nodes[0].num_nodes == 2 - (failure == MAX_FAILURES)
                assert await protocol.call_ping(victim) == (False, None)
            assert nodes[0].num_nodes == 1
            assert await protocol.call_find_node(victim, victim) == (False, [])
            assert await protocol.call_find_value(victim, victim) == (False, None)
            assert await protocol.call_store(victim, []) == (False, None)

    run_virtual(scenario())


def test_whoever_asks_is_believed_once_it_answers() -> None:
    """A sender that claims an address where nobody answers never gets into the table; an honest one does."""

    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node:
            stranger = network.transport("stranger")
            liar = PingRequest(Contact(b"l" * 20, Endpoint("nowhere", 1)))
            request = messages.encode_ping_request(liar)
            for _ in range(3):
                await stranger.call(address(0), messages.PING, request, Deadline.after(1))
            await asyncio.sleep(10)
            assert node.num_nodes == 0
            async with a_node(network, 1, [0]):
                await until(lambda: node.num_nodes == 1)

    run_virtual(scenario())


def test_another_node_at_a_known_address_is_not_taken_for_the_first() -> None:
    """A daemon that came back with a new key: its old id is forgotten at the first call."""

    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node, network.transport("host9").serve(address(9)) as server:
            ids = iter([b"a" * 20, b"b" * 20, b"b" * 20])

            async def ping(data: bytes, caller: Caller) -> bytes:
                return messages.encode_ping_reply(PingReply(Contact(next(ids), address(9))))

            server.add(Service(messages.SERVICE, calls={"Ping": ping}))
            await node._protocol.greet(address(9), b"")
            old = node._protocol.router.find(b"a" * 20)
            assert old is not None
            assert await node._protocol.call_ping(old) == (False, None)
            assert node._protocol.router.find(b"a" * 20) is None

    run_virtual(scenario())


def test_garbage_is_refused_and_harms_nobody() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node:
            stranger = network.transport("stranger")
            for method in (messages.PING, messages.STORE, messages.FIND_NODE, messages.FIND_VALUE):
                for garbage in (b"", b"\xff" * 40, Random(1).randbytes(500)):
                    with pytest.raises(MessageError):
                        await stranger.call(address(0), method, garbage, Deadline.after(1))
            assert node.num_nodes == 0

    run_virtual(scenario())


def test_a_newcomer_is_handed_what_it_should_hold() -> None:
    async def scenario() -> None:
        network = Network(1)
        quiet = DhtSettings(refresh=1000)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(network, 0, settings=quiet))
            await first.publish("peers", b"first", ttl=1000)
            newcomer = await stack.enter_async_context(a_node(network, 1, [0], quiet))
            await until(lambda: newcomer.held("peers"))
            (record,) = newcomer.held("peers")
            assert record.author == first.peer

    run_virtual(scenario())
