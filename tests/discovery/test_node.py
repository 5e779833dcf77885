"""A node of the DHT: joining, publishing, looking up, leaving."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from distqat.discovery import messages
from distqat.discovery.bootstrap import ITSELF, JOINED, TRYING
from distqat.discovery.calls import Contact, StoreReply, StoreRequest
from distqat.discovery.known import KnownPeers
from distqat.discovery.node import DhtNode
from distqat.discovery.protocol import DhtSettings
from distqat.discovery.records import Body, SignedRecord
from distqat.discovery.signing import seal
from distqat.errors import RecordError
from distqat.ids import Endpoint
from distqat.rpc.grpc import open_transport
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Deadline, Service
from tests.discovery.helpers import a_key, a_node, a_record, a_swarm, address, forged, values
from tests.support import run, run_virtual, until


async def store(network: Network, to: int, *records: SignedRecord) -> StoreReply:
    """A stranger asks a node to keep records."""
    sender = Contact(b"s" * 20, Endpoint("stranger", 1))
    request = messages.encode_store_request(StoreRequest(sender, records))
    reply = await network.transport("stranger").call(address(to), messages.STORE, request, Deadline.after(1))
    return messages.decode_store_reply(reply)


def test_what_one_publishes_all_find() -> None:
    async def scenario() -> None:
        async with a_swarm(Network(1), 4) as nodes:
            for number, node in enumerate(nodes):
                await node.publish("peers", f"node {number}".encode(), ttl=10)
            for node in nodes:
                assert values(await node.lookup("peers")) == [b"node 0", b"node 1", b"node 2", b"node 3"]
            assert await nodes[0].lookup("another key") == []

    run_virtual(scenario())


def test_a_record_lives_as_long_as_its_author() -> None:
    """It is sent again before it dies; a crash ends it after its time to live."""

    async def scenario() -> None:
        network = Network(1)
        async with a_swarm(network, 3) as nodes:
            await nodes[1].publish("peers", b"node 1", ttl=9)
            (first,) = await nodes[0].lookup("peers")
            await asyncio.sleep(30)
            (later,) = await nodes[0].lookup("peers")
            assert later.sequence > first.sequence
            network.crash("host1")
            await asyncio.sleep(later.remaining - 0.1)
            assert values(nodes[2].held("peers")) == [b"node 1"]
            await asyncio.sleep(0.2)
            assert await nodes[2].lookup("peers") == []

    run_virtual(scenario())


def test_a_newer_value_replaces_the_older_one() -> None:
    async def scenario() -> None:
        async with a_swarm(Network(1), 3) as nodes:
            assert await nodes[1].publish("peers", b"old", ttl=10) > 0
            await nodes[1].publish("peers", b"new", ttl=10)
            assert values(await nodes[0].lookup("peers")) == [b"new"]

    run_virtual(scenario())


def test_withdrawing_and_leaving_are_known_at_once() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node:
            async with a_node(network, 1, [0]) as guest:
                await guest.wait_joined()
                await guest.publish("peers", b"guest", ttl=100)
                await guest.publish("runs", b"run", ttl=100)
                assert values(await node.lookup("runs")) == [b"run"]
                await guest.withdraw("runs")
                assert await node.lookup("runs") == []
                assert values(await node.lookup("peers")) == [b"guest"]
            assert node.held("peers") == []
            assert await node.lookup("peers") == []

    run_virtual(scenario())


def test_leaving_takes_bounded_time_when_nobody_answers() -> None:
    async def scenario() -> None:
        network = Network(1)
        loop = asyncio.get_running_loop()
        async with a_swarm(network, 2, DhtSettings(leave_timeout=1.0)) as nodes:
            await nodes[1].publish("peers", b"guest", ttl=100)
            network.loss = 1.0
            began = loop.time()
        assert loop.time() - began <= 2.1, "two nodes, a second each"

    run_virtual(scenario())


def test_publishing_before_joining_is_no_failure() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node:
            assert await node.publish("peers", b"early", ttl=60) == 0
            assert values(await node.lookup("peers")) == [b"early"]
            async with a_node(network, 1) as other:
                node.bootstrap([address(1)])
                await until(lambda: other.held("peers"))

    run_virtual(scenario())


def test_forged_and_replayed_records_are_refused_with_the_reason() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node:
            old, new = a_record(sequence=1, value=b"old"), a_record(sequence=2, value=b"new")
            assert (await store(network, 0, old, new)).kept == 2
            reply = await store(network, 0, forged(a_record(sequence=3)), old, a_record(sequence=2, value=b"other"))
            assert reply.kept == 0
            for reason, expected in zip(reply.refused, ("signature", "older", "same number"), strict=True):
                assert expected in reason
            assert values(node.held("peers")) == [b"new"]
            await asyncio.sleep(11)
            reply = await store(network, 0, replace(new, remaining=1000))
            assert "has died" in reply.refused[0]
            assert node.held("peers") == []

    run_virtual(scenario())


def test_a_value_that_is_too_large_is_refused_at_home() -> None:
    async def scenario() -> None:
        async with a_node(Network(1), 0) as node:
            with pytest.raises(RecordError, match="at most 8192"):
                await node.publish("peers", bytes(9000), ttl=10)
            assert await node.lookup("peers") == []

    run_virtual(scenario())


def test_watchers_hear_of_every_change() -> None:
    async def scenario() -> None:
        network = Network(1)
        heard: list[str] = []
        async with a_swarm(network, 2) as nodes:
            await asyncio.sleep(1)
            unwatch = nodes[0].watch(heard.append)
            await nodes[1].publish("runs", b"x", ttl=5)
            assert heard == ["runs"]
            await nodes[1].withdraw("runs")
            assert heard == ["runs", "runs"]
            await asyncio.sleep(10)
            assert heard == ["runs", "runs", "runs"], "the tombstone has died"
            unwatch()
            await nodes[1].publish("runs", b"y", ttl=5)
            assert len(heard) == 3

    run_virtual(scenario())


def test_numbers_of_an_earlier_life_are_overtaken() -> None:
    """A daemon whose clock was set back begins with lower numbers than its old record has; it still gets through."""

    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node:
            earlier = seal(a_key(1), Body("peers", 10**13, 60.0, False, b"earlier life"))
            await store(network, 0, earlier)
            async with a_node(network, 1, [0]) as reborn:
                await reborn.wait_joined()
                await reborn.publish("peers", b"this life", ttl=60)
                await asyncio.sleep(25)
                await reborn.lookup("peers")
                await asyncio.sleep(1)
                assert values(await node.lookup("peers")) == [b"this life"]

    run_virtual(scenario())


def test_numbers_leap_when_all_refuse_them() -> None:
    """The old record has died, so that nobody shows it; what is left is that all refuse."""

    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node:
            await store(network, 0, seal(a_key(1), Body("peers", 300_000, 1.0, False, b"earlier life")))
            await asyncio.sleep(5)
            async with a_node(network, 1, [0]) as reborn:
                await reborn.wait_joined()
                await reborn.publish("peers", b"this life", ttl=60)
                assert node.held("peers") == []
                await asyncio.sleep(10)
                assert values(node.held("peers")) == [b"this life"]

    run_virtual(scenario())


def test_an_address_that_refuses_is_named_with_the_reason() -> None:
    async def scenario() -> None:
        network = Network(1, delay=0.01)
        async with a_node(network, 0) as node:
            node.bootstrap([address(7), address(0)])
            assert node.bootstrap_state == {address(7): TRYING, address(0): TRYING}
            await asyncio.sleep(1)
            assert node.bootstrap_state == {address(7): f"nobody listens at {address(7)}", address(0): ITSELF}
            async with a_node(network, 7):
                await asyncio.sleep(30)
                assert node.bootstrap_state[address(7)] == JOINED, "it is tried until it answers"
            assert repr(node) == f"<DhtNode {node.peer[:8]} at host0:7000: 1 nodes, 0 records>"

    run_virtual(scenario())


def test_an_address_that_does_not_answer_is_named_with_the_reason() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node, network.transport("deaf").serve(Endpoint("deaf", 1)) as server:

            async def never(data: bytes, caller: Caller) -> bytes:
                await asyncio.sleep(1e6)
                return b""

            server.add(Service(messages.SERVICE, calls={"Ping": never}))
            node.bootstrap([server.endpoint])
            await asyncio.sleep(3)
            assert "no answer in time" in node.bootstrap_state[server.endpoint]

    run_virtual(scenario())


def test_a_server_of_another_kind_is_named_with_the_reason() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node, network.transport("other").serve(Endpoint("other", 1)) as server:
            node.bootstrap([server.endpoint])
            await asyncio.sleep(1)
            assert "is not served" in node.bootstrap_state[server.endpoint]

    run_virtual(scenario())


def test_known_peers_lead_back_without_an_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        network = Network(1)
        file = tmp_path / "known_peers.json"
        async with a_node(network, 0) as node:
            async with a_node(network, 1, [0], known=KnownPeers(file)) as guest:
                await guest.wait_joined()
            assert json.loads(file.read_text()) == {"peers": [str(address(0))]}
            async with a_node(network, 1, known=KnownPeers(file), life=2) as guest:
                await guest.wait_joined()
                await guest.publish("peers", b"again", ttl=10)
                assert values(await node.lookup("peers")) == [b"again"]

    run_virtual(scenario())


def test_a_node_that_lost_everybody_comes_back_soon() -> None:
    """Though the next refresh is far away, and no address is given again."""

    async def scenario() -> None:
        network = Network(1)
        async with a_swarm(network, 2, DhtSettings(refresh=10_000)) as nodes:
            await asyncio.sleep(100)
            network.partition(["host0"], ["host1"])
            for _ in range(2):
                assert await nodes[1].lookup("peers") == []
            assert nodes[1].num_nodes == 0
            await asyncio.sleep(60)
            network.heal()
            await asyncio.sleep(5)
            assert nodes[1].num_nodes == 1

    run_virtual(scenario())


def test_an_overtaken_statement_is_no_reason_to_leap() -> None:
    """The first statement arrives everywhere after the second: it is refused, and that is as it should be."""

    async def scenario() -> None:
        network = Network(1, delay=0.4)
        async with a_swarm(network, 2) as nodes:
            await asyncio.sleep(10)
            async with asyncio.TaskGroup() as group:
                group.create_task(nodes[1].publish("peers", b"old", ttl=60))
                await asyncio.sleep(0.1)
                network.delay = 0.0
                group.create_task(nodes[1].publish("peers", b"new", ttl=60))
            (record,) = await nodes[0].lookup("peers")
            assert (record.value, record.sequence) == (b"new", 1002)
            await asyncio.sleep(50)
            (record,) = await nodes[0].lookup("peers")
            assert record.sequence < 1010

    run_virtual(scenario())


def test_a_moved_node_tells_its_new_address() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with a_node(network, 0) as node:
            node.move(Endpoint("host0.example", 7000))
            assert node.endpoint == Endpoint("host0.example", 7000)
            async with a_node(network, 1, [0]) as guest:
                await guest.wait_joined()
                (known,) = guest._protocol.router.nodes()
                assert known.ip == "host0", "the new one does not answer here, the dialled one does"

    run_virtual(scenario())


def test_an_error_of_the_body_leaves_as_it_was_raised_and_no_task_stays() -> None:
    async def scenario() -> None:
        async def fails() -> None:
            async with a_node(Network(1), 0, [5]):
                await asyncio.sleep(1)
                raise KeyError

        before = asyncio.all_tasks()
        with pytest.raises(KeyError):
            await fails()
        assert asyncio.all_tasks() == before

    run_virtual(scenario())


def test_three_nodes_over_grpc() -> None:
    @asynccontextmanager
    async def real_node(number: int, join: list[Endpoint]) -> AsyncIterator[DhtNode]:
        listen = Endpoint("127.0.0.1", 0)
        async with (
            open_transport() as transport,
            transport.serve(listen) as server,
            DhtNode.open(transport, a_key(number), server.endpoint, 1, Random(number)) as dht,
        ):
            server.add(dht.service)
            dht.bootstrap(join)
            yield dht

    async def scenario() -> None:
        async with real_node(0, []) as alice, real_node(1, [alice.endpoint]) as bob:
            async with real_node(2, [bob.endpoint, Endpoint("127.0.0.1", 1)]) as carol:
                await carol.wait_joined()
                await until(lambda: alice.num_nodes == bob.num_nodes == carol.num_nodes == 2)
                for number, node in enumerate((alice, bob, carol)):
                    await node.publish("peers", f"node {number}".encode(), ttl=10)
                for node in (alice, bob, carol):
                    assert values(await node.lookup("peers")) == [b"node 0", b"node 1", b"node 2"]
                await until(lambda: "127.0.0.1:1" in carol.bootstrap_state[Endpoint("127.0.0.1", 1)])
            assert values(await alice.lookup("peers")) == [b"node 0", b"node 1"]

    run(scenario())
