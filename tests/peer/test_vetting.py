"""What no waiting cures: another version everywhere, or a key that somebody else has too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from random import Random

import pytest

from distqat.discovery import keys
from distqat.discovery.calls import Contact, StoreRequest
from distqat.discovery.directory import Directory
from distqat.discovery.messages import STORE, decode_record, encode_record, encode_store_request
from distqat.discovery.node import DhtNode
from distqat.discovery.records import Body, PeerRecord
from distqat.discovery.signing import node_id, seal
from distqat.errors import DistqatError, IdentityError, ProtocolError
from distqat.ids import Endpoint
from distqat.peer.vetting import vet
from distqat.rpc.local import Network
from distqat.rpc.transport import Deadline, Method, Transport
from distqat.rpc.wrapped import WrappedTransport
from tests.discovery.helpers import PORT, a_key, a_node, address
from tests.support import run_virtual


class Foreign(WrappedTransport):
    """Some hosts speak another version."""

    def __init__(self, inner: Transport, *hosts: str) -> None:
        super().__init__(inner)
        self.hosts = set(hosts)

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        if to.host in self.hosts:
            raise ProtocolError(f"the caller speaks version 2 of the distqat protocol, {to} speaks version 99")
        return await super().call(to, method, request, deadline)


@asynccontextmanager
async def a_newcomer(transport: Transport, key: int, *join: int) -> AsyncIterator[DhtNode]:
    """A node on host "late" with the key of that number."""
    async with (
        transport.serve(Endpoint("late", PORT)) as server,
        DhtNode.open(transport, a_key(key), server.endpoint, 1000, Random("late")) as dht,
    ):
        server.add(dht.service)
        dht.bootstrap(address(other) for other in join)
        yield dht


@asynccontextmanager
async def a_daemon(network: Network, key: int, host: str, *join: int, life: int = 1) -> AsyncIterator[DhtNode]:
    """A node with the key of that number on some host, which says where it is, as daemons do."""
    transport = network.transport(host)
    async with (
        transport.serve(Endpoint(host, PORT)) as server,
        DhtNode.open(transport, a_key(key), server.endpoint, 1000 * life, Random(f"{host} {life}")) as dht,
        Directory.open(dht, None) as directory,
    ):
        server.add(dht.service)
        directory.announce(PeerRecord(server.endpoint, born=1000 * life))
        dht.bootstrap(address(other) for other in join)
        yield dht


async def verdict(dht: DhtNode, seconds: float = 60.0) -> list[DistqatError]:
    """Why the node is sent away; empty if it is let in, or still waits."""
    ended: list[DistqatError] = []
    try:
        async with asyncio.timeout(seconds):
            await vet(dht, ended.append)
    except TimeoutError:
        assert not ended
    return ended


def test_a_daemon_whose_version_nobody_speaks_is_sent_away() -> None:
    async def scenario() -> None:
        network = Network()
        transport = Foreign(network.transport("late"), "host1", "host2")
        async with a_node(network, 1), a_node(network, 2), a_newcomer(transport, 9, 1, 2) as dht:
            (error,) = await verdict(dht)
            assert isinstance(error, ProtocolError)
            assert "speaks version 99" in error.reason

    run_virtual(scenario())


def test_one_that_speaks_it_is_enough_and_one_that_is_silent_may_yet() -> None:
    async def scenario() -> None:
        network = Network()
        transport = Foreign(network.transport("late"), "host1")
        async with a_node(network, 1), a_newcomer(transport, 9, 1, 2) as dht:
            # Nobody listens at the second address.
            assert not await verdict(dht)
            async with a_node(network, 2):
                assert not await verdict(dht)
                assert dht.num_nodes

    run_virtual(scenario())


def test_a_copied_key_is_named_with_the_address_of_the_other() -> None:
    async def scenario() -> None:
        network = Network()
        async with a_node(network, 1), a_newcomer(network.transport("late"), 1, 1) as dht:
            (error,) = await verdict(dht)
            assert isinstance(error, IdentityError)
            assert str(address(1)) in error.reason

    run_virtual(scenario())


def test_twins_that_meet_through_another_are_told_apart_and_the_newcomer_leaves() -> None:
    async def scenario() -> None:
        network = Network()
        async with a_daemon(network, 1, "host1"), a_daemon(network, 2, "host2", 1) as first:
            assert not await verdict(first)
            async with a_daemon(network, 2, "late", 1, life=2) as twin:
                (error,) = await verdict(twin)
                assert isinstance(error, IdentityError)
                assert str(first.endpoint) in error.reason
            # What the twin withdraws as it leaves is not what the swarm remembers.
            await asyncio.sleep(20.0)
            (record,) = [one for one in await first.lookup(keys.PEERS) if one.author == first.peer]
            assert decode_record(PeerRecord, record.value).endpoint == first.endpoint

    run_virtual(scenario())


def test_of_twins_that_begin_at_once_one_leaves() -> None:
    async def scenario() -> None:
        network = Network()
        async with (
            a_daemon(network, 1, "host1"),
            a_daemon(network, 2, "host2", 1, life=9) as first,
            a_daemon(network, 2, "late", 1, life=2) as twin,
        ):
            async with asyncio.TaskGroup() as group:
                both = [group.create_task(verdict(dht)) for dht in (first, twin)]
            (error,) = both[0].result()
            assert isinstance(error, IdentityError)
            assert not both[1].result()

    run_virtual(scenario())


@pytest.mark.parametrize("life", [1, 3], ids=["clock set back", "later"])
def test_a_daemon_that_was_killed_and_is_back_elsewhere_is_let_in(life: int) -> None:
    async def scenario() -> None:
        network = Network()
        async with a_daemon(network, 1, "host1") as other:
            async with a_daemon(network, 2, "host2", 1, life=2) as before:
                await before.wait_joined()
                await asyncio.sleep(10.0)
                network.crash("host2")
            assert [record.author for record in await other.lookup(keys.PEERS)].count(before.peer) == 1
            async with a_daemon(network, 2, "late", 1, life=life) as again:
                assert not await verdict(again)
                assert again.num_nodes
                assert again.twin is None

    run_virtual(scenario())


def test_a_stranger_who_says_that_a_twin_is_at_his_place_sends_nobody_away() -> None:
    async def scenario() -> None:
        network = Network()
        async with a_daemon(network, 1, "host1"), a_daemon(network, 2, "host2", 1) as dht:
            await dht.wait_joined()
            value = encode_record(PeerRecord(Endpoint("liar", PORT)))
            genuine = seal(a_key(3), Body(keys.PEERS, 5000, 10.0, False, value))
            forged = replace(genuine, public_key=a_key(2).public_key)
            transport = network.transport("liar")
            async with transport.serve(Endpoint("liar", PORT)) as server, _impostor(transport, server.endpoint) as lies:
                server.add(lies.service)
                request = encode_store_request(
                    StoreRequest(Contact(node_id(a_key(3).public_key), server.endpoint), (forged,))
                )
                await transport.call(dht.endpoint, STORE, request, Deadline.after(2.0))
                assert not await verdict(dht)
                assert dht.twin is None

    run_virtual(scenario())


def _impostor(transport: Transport, endpoint: Endpoint) -> AbstractAsyncContextManager[DhtNode]:
    """Answers as if it had key 2: what it says of itself nobody has signed."""
    return DhtNode.open(transport, a_key(2), endpoint, 1, Random("liar"))


def test_a_daemon_that_was_given_its_own_address_is_no_copy_of_itself() -> None:
    async def scenario() -> None:
        network = Network()
        transport = network.transport("late")
        async with a_newcomer(transport, 9) as dht:
            dht.bootstrap([dht.endpoint])
            assert not await verdict(dht)

    run_virtual(scenario())
