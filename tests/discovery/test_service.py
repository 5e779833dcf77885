"""The answering side."""

from __future__ import annotations

import asyncio

from distqat.discovery import messages
from distqat.discovery.calls import Contact, FindRequest
from distqat.discovery.keys import key_id
from distqat.discovery.records import Body
from distqat.discovery.service import MAX_FOUND_BYTES, within_limits
from distqat.discovery.signing import seal
from distqat.ids import Endpoint
from distqat.rpc.local import Network
from distqat.rpc.transport import Deadline
from tests.discovery.helpers import a_key, a_record, a_swarm, a_tombstone, address
from tests.support import run_virtual


def test_an_answer_has_limits() -> None:
    large = seal(a_key(1), Body("peers", 1, 10.0, False, bytes(8000)))
    fitting = within_limits([large] * 1000)
    assert 200 < len(fitting) < MAX_FOUND_BYTES / 8000
    assert len(within_limits([a_record()] * 5000)) == messages.MAX_FOUND
    assert within_limits([]) == ()


def test_find_value_hands_on_records_tombstones_and_neighbours() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_swarm(network, 3) as nodes:
            await asyncio.sleep(1)
            nodes[0]._keep(a_record(1, ttl=10))
            nodes[0]._keep(a_tombstone(2, ttl=10))
            await asyncio.sleep(4)
            sender = Contact(bytes.fromhex(nodes[1].peer), address(1))
            request = messages.encode_find_value_request(FindRequest(sender, key_id("peers")))
            stranger = network.transport("stranger")
            data = await stranger.call(address(0), messages.FIND_VALUE, request, Deadline.after(1))
            reply = messages.decode_find_value_reply(data)
            assert len(reply.records) == 2
            assert all(5.9 < record.remaining <= 6 for record in reply.records)
            assert reply.responder.hex() == nodes[0].peer
            assert reply.nodes == (Contact(bytes.fromhex(nodes[2].peer), address(2)),), "the asking node knows itself"
            await stranger.call(address(0), messages.FIND_VALUE, request, Deadline.after(1))

    run_virtual(scenario())


def test_the_service_has_kademlias_four_calls() -> None:
    async def scenario() -> None:
        async with a_swarm(Network(1), 1) as (node,):
            assert node.service.name == "distqat.v1.Discovery"
            assert set(node.service.calls) == {"Ping", "Store", "FindNode", "FindValue"}
            assert node.endpoint == Endpoint("host0", 7000)

    run_virtual(scenario())
