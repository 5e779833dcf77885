"""What no waiting cures: another version everywhere, or a key that somebody else has too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from distqat.discovery.node import DhtNode
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


def test_a_daemon_that_was_given_its_own_address_is_no_copy_of_itself() -> None:
    async def scenario() -> None:
        network = Network()
        transport = network.transport("late")
        async with a_newcomer(transport, 9) as dht:
            dht.bootstrap([dht.endpoint])
            assert not await verdict(dht)

    run_virtual(scenario())
