"""What no waiting cures: another version everywhere, or a key that somebody else has too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random

import pytest

from distqat.discovery import keys
from distqat.discovery.bootstrap import ITSELF, JOINED
from distqat.discovery.calls import Contact, Life, PingReply, PingRequest, StoreRequest
from distqat.discovery.directory import Directory
from distqat.discovery.messages import (
    PING,
    STORE,
    decode_ping_reply,
    decode_ping_request,
    decode_record,
    encode_ping_reply,
    encode_ping_request,
    encode_record,
    encode_store_request,
)
from distqat.discovery.node import DhtNode
from distqat.discovery.records import Body, PeerRecord, SignedRecord
from distqat.discovery.signing import node_id, seal, sign_life
from distqat.errors import DistqatError, IdentityError, ProtocolError
from distqat.ids import Endpoint
from distqat.peer.vetting import vet
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Deadline, Method, Service, Transport
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
        directory.announce(PeerRecord(server.endpoint))
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


@pytest.mark.parametrize("elder", ["host2", "late"])
def test_of_twins_that_knock_at_each_other_at_once_the_younger_leaves(elder: str) -> None:
    """Both were given both addresses, and meet nobody else."""

    async def scenario() -> None:
        network = Network()
        lives = {host: 1 if host == elder else 2 for host in ("host2", "late")}
        async with AsyncExitStack() as stack:
            both = {
                host: await stack.enter_async_context(a_daemon(network, 2, host, life=life))
                for host, life in lives.items()
            }
            for dht in both.values():
                dht.bootstrap(Endpoint(host, PORT) for host in both)
            async with asyncio.TaskGroup() as group:
                verdicts = {host: group.create_task(verdict(dht)) for host, dht in both.items()}
            for host, found in verdicts.items():
                assert [type(error) for error in found.result()] == ([] if host == elder else [IdentityError])

    run_virtual(scenario())


def test_an_elder_whose_copy_was_named_to_it_goes_on_to_try_that_address() -> None:
    async def scenario() -> None:
        network = Network()
        async with a_daemon(network, 2, "host2") as elder:
            async with a_daemon(network, 2, "host1", life=2):
                elder.bootstrap([address(1)])
                assert not await verdict(elder)
                assert "has a copy of this one's key" in elder.bootstrap_state[address(1)]
            async with a_node(network, 1):
                await elder.wait_joined()

    run_virtual(scenario())


LIAR = Endpoint("attacker", PORT)  # In front of the victim, were they of one age.


class Liar:
    """Answers as if it had key 2, which it does not have; and knows all that was ever said over the network."""

    def __init__(self, transport: Transport, victim: Endpoint) -> None:
        self.transport, self.victim = transport, victim
        self.num_asked = 0

    async def silent(self, request: PingRequest) -> Life | None:
        """Proves nothing."""
        return None

    async def forged(self, request: PingRequest) -> Life | None:
        """Signs with a key of its own."""
        return sign_life(a_key(3), request.nonce, 1, LIAR)

    async def replayed(self, request: PingRequest) -> Life | None:
        """What an elder life with that key said to somebody else, when it was here."""
        return sign_life(a_key(2), bytes(16), 1, LIAR)

    async def reflected(self, request: PingRequest) -> Life | None:
        """Has the victim itself sign the nonce."""
        question = encode_ping_request(request)
        life = decode_ping_reply(await self.transport.call(self.victim, PING, question, Deadline.after(2.0))).life
        assert life is not None
        return life

    async def made_older(self, request: PingRequest) -> Life | None:
        """The same, with an elder life."""
        life = await self.reflected(request)
        assert life is not None
        return replace(life, born=1)

    def service(self, how: str) -> Service:
        """One that lies so."""

        async def ping(data: bytes, caller: Caller) -> bytes:
            self.num_asked += 1
            life = await getattr(self, how)(decode_ping_request(data))
            return encode_ping_reply(PingReply(Contact(node_id(a_key(2).public_key), LIAR), life))

        return Service(PING.service, calls={"Ping": ping})


@pytest.mark.parametrize("how", ["silent", "forged", "replayed", "reflected", "made_older"])
def test_who_cannot_sign_with_the_key_sends_nobody_away(how: str) -> None:
    """Though the daemon was told to join there, and an old record of its own says that it was there once."""

    async def scenario() -> None:
        network = Network()
        async with a_daemon(network, 1, "host1"), a_daemon(network, 2, "host2", 1, life=9) as dht:
            await dht.wait_joined()
            transport = network.transport(LIAR.host)
            liar = Liar(transport, dht.endpoint)
            async with transport.serve(LIAR) as server:
                server.add(liar.service(how))
                old = seal(a_key(2), Body(keys.PEERS, 1, 10.0, False, encode_record(PeerRecord(LIAR))))
                await _store(transport, dht.endpoint, old)
                assert not await verdict(dht)
                assert liar.num_asked == 1
                dht.bootstrap([LIAR])
                assert not await verdict(dht)
                assert liar.num_asked > 1
                assert dht.twin is None
                assert dht.bootstrap_state[LIAR] not in (JOINED, ITSELF)
            # Whoever has the address next is met there.
            async with _stranger(network.transport(LIAR.host), 4) as next_one:
                await next_one.wait_joined()
                await asyncio.sleep(20.0)
                assert dht.bootstrap_state[LIAR] == JOINED

    run_virtual(scenario())


def test_a_record_that_is_not_of_this_key_is_not_even_looked_into() -> None:
    async def scenario() -> None:
        network = Network()
        async with a_daemon(network, 1, "host1"), a_daemon(network, 2, "host2", 1) as dht:
            await dht.wait_joined()
            genuine = seal(a_key(3), Body(keys.PEERS, 5000, 10.0, False, encode_record(PeerRecord(LIAR))))
            transport = network.transport(LIAR.host)
            liar = Liar(transport, dht.endpoint)
            async with transport.serve(LIAR) as server:
                server.add(liar.service("silent"))
                await _store(transport, dht.endpoint, replace(genuine, public_key=a_key(2).public_key))
                assert not await verdict(dht)
                assert not liar.num_asked

    run_virtual(scenario())


async def _store(transport: Transport, at: Endpoint, record: SignedRecord) -> None:
    """Hand somebody a record; who does so is a stranger."""
    sender = Contact(node_id(a_key(3).public_key), Endpoint("nowhere", PORT))
    await transport.call(at, STORE, encode_store_request(StoreRequest(sender, (record,))), Deadline.after(2.0))


@asynccontextmanager
async def _stranger(transport: Transport, key: int) -> AsyncIterator[DhtNode]:
    """A node at the liar's address, which joins through the first."""
    async with (
        transport.serve(LIAR) as server,
        DhtNode.open(transport, a_key(key), server.endpoint, 1000, Random("stranger")) as dht,
    ):
        server.add(dht.service)
        dht.bootstrap([address(1)])
        yield dht


def test_a_daemon_that_was_given_its_own_address_is_no_copy_of_itself() -> None:
    async def scenario() -> None:
        network = Network()
        transport = network.transport("late")
        async with a_newcomer(transport, 9) as dht:
            dht.bootstrap([dht.endpoint])
            assert not await verdict(dht)

    run_virtual(scenario())
