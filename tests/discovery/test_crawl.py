"""Who is near a key, and what they hold under it."""

from __future__ import annotations

import asyncio

from distqat.discovery import messages
from distqat.discovery.calls import Contact, FindNodeReply
from distqat.discovery.crawl import MAX_CONTACTS, MAX_REPAIRED, NodeCrawl, ValueCrawl, lacking
from distqat.discovery.keys import key_id
from distqat.discovery.protocol import DhtSettings
from distqat.ids import Endpoint
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service
from tests.discovery.helpers import a_node, a_record, a_swarm, values
from tests.support import run_virtual

QUIET = DhtSettings(refresh=1000)
WHERE = key_id("peers")


def test_a_node_crawl_finds_the_nearest_of_all() -> None:
    async def scenario() -> None:
        async with a_swarm(Network(1), 9, DhtSettings(bucket=4, refresh=1000)) as nodes:
            await asyncio.sleep(1)
            place = int.from_bytes(WHERE, "big")
            others = [bytes.fromhex(node.peer) for node in nodes[1:]]
            nearest = sorted(others, key=lambda one: int.from_bytes(one, "big") ^ place)[:3]
            found = await NodeCrawl(nodes[0]._protocol, WHERE, 3).find()
            assert [node.id for node in found] == nearest

    run_virtual(scenario())


def test_a_dead_node_is_not_found_though_others_name_it() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_swarm(network, 6, QUIET) as nodes:
            await asyncio.sleep(1)
            network.crash("host3")
            found = await NodeCrawl(nodes[0]._protocol, WHERE, 6).find()
            assert sorted(node.id.hex() for node in found) == sorted(
                node.peer for number, node in enumerate(nodes) if number not in (0, 3)
            )

    run_virtual(scenario())


def test_a_value_crawl_merges_what_the_nodes_hold_and_heals_them() -> None:
    """Each node holds another author's record; one lookup finds all of them, and leaves none without."""

    async def scenario() -> None:
        async with a_swarm(Network(1), 5, QUIET) as nodes:
            await asyncio.sleep(1)
            for author, node in enumerate(nodes[1:], 10):
                node._keep(a_record(author=author, value=f"from {author}".encode(), ttl=100))
            everything = [b"from 10", b"from 11", b"from 12", b"from 13"]
            assert values(await nodes[0].lookup("peers")) == everything
            await asyncio.sleep(1)
            for node in nodes:
                assert values(node.held("peers")) == everything

    run_virtual(scenario())


def test_what_is_lacking() -> None:
    alive, dying = a_record(1, ttl=10), a_record(2, ttl=0.5)
    assert lacking((), [alive, dying], least=1.0) == [alive]
    assert lacking((alive,), [alive, dying], least=1.0) == []
    crowd = [a_record(value=bytes([number])) for number in range(MAX_REPAIRED + 5)]
    assert lacking((), crowd, least=1.0) == crowd[:MAX_REPAIRED]


def test_a_liar_that_names_ever_nearer_nodes_is_left_alone() -> None:
    """One host plays endlessly many nodes, each naming more that are nearer to the key."""

    async def scenario() -> None:
        network = Network(1)
        asked = 0
        port_ids: dict[int, bytes] = {}

        async def serve_port(port: int) -> None:
            async with network.transport("liar").serve(Endpoint("liar", port)) as server:

                async def find_node(data: bytes, caller: Caller) -> bytes:
                    nonlocal asked
                    asked += 1
                    nearer = [Contact(port_ids[other], Endpoint("liar", other)) for other in (port + 1, port + 2)]
                    return messages.encode_find_node_reply(FindNodeReply(tuple(nearer), port_ids[port]))

                server.add(Service(messages.SERVICE, calls={"FindNode": find_node}))
                await asyncio.sleep(10_000)

        target = int.from_bytes(WHERE, "big")
        for port in range(1, 300):
            port_ids[port] = (target ^ (1 << 150 >> port // 2) ^ port).to_bytes(20, "big")
        async with a_node(network, 0, settings=QUIET) as node, asyncio.TaskGroup() as group:
            tasks = [group.create_task(serve_port(port)) for port in range(1, 290)]
            await asyncio.sleep(0.1)
            node._protocol.welcome(node._protocol.router.node.__class__(port_ids[1], "liar", 1))
            await NodeCrawl(node._protocol, WHERE, 8).find()
            assert MAX_CONTACTS <= asked <= MAX_CONTACTS + 8
            for task in tasks:
                task.cancel()

    run_virtual(scenario())


def test_answers_are_kept_by_node() -> None:
    async def scenario() -> None:
        async with a_swarm(Network(1), 3, QUIET) as nodes:
            await asyncio.sleep(1)
            nodes[1]._keep(a_record(author=10))
            crawl = ValueCrawl(nodes[0]._protocol, WHERE, 8)
            found = await crawl.find()
            assert {node.id.hex() for node in found} == {nodes[1].peer, nodes[2].peer}
            assert {node_id.hex(): len(records) for node_id, records in crawl.answers.items()} == {
                nodes[1].peer: 1,
                nodes[2].peer: 0,
            }

    run_virtual(scenario())
