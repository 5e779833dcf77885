"""Limited links of the network in memory."""

from __future__ import annotations

import asyncio

import pytest

from distqat.ids import Endpoint
from distqat.rpc.cables import Cables
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Lane, Method, Service, Stream
from tests.support import run_virtual


def test_messages_leave_one_after_the_other() -> None:
    cables = Cables()
    cables.limit("a", up=10.0, down=0.0)
    assert cables.seconds("a", "b", 20, 5.0) == pytest.approx(2.0)
    assert cables.seconds("a", "c", 10, 6.0) == pytest.approx(2.0)  # Behind what goes to b.
    assert cables.seconds("a", "b", 10, 20.0) == pytest.approx(1.0)
    assert cables.seconds("b", "a", 10, 20.0) == 0.0
    assert (cables.up("a"), cables.down("a"), cables.up("b")) == (10.0, 0.0, 0.0)


def test_the_slower_end_counts_once() -> None:
    cables = Cables()
    cables.limit("a", up=10.0, down=0.0)
    cables.limit("b", up=0.0, down=5.0)
    assert cables.seconds("a", "b", 20, 0.0) == pytest.approx(4.0)
    cables.limit("b", up=0.0, down=100.0)
    assert cables.seconds("a", "b", 20, 10.0) == pytest.approx(2.0)


def test_two_senders_share_what_a_receiver_takes() -> None:
    cables = Cables()
    cables.limit("c", up=0.0, down=10.0)
    assert cables.seconds("a", "c", 10, 0.0) == pytest.approx(1.0)
    assert cables.seconds("b", "c", 10, 0.0) == pytest.approx(2.0)


def test_a_stream_takes_the_time_that_its_cables_need_and_control_does_not_wait() -> None:
    async def scenario() -> None:
        network = Network(delay=0.1)
        network.cables.limit("alice", up=1e6, down=2e6)
        came: list[float] = []
        loop = asyncio.get_running_loop()

        async def take(stream: Stream, caller: Caller) -> None:
            while await stream.receive() is not None:
                came.append(loop.time())

        alice, bob = network.transport("alice"), network.transport("bob")
        assert (alice.uplink(), alice.downlink(), bob.uplink(), bob.downlink()) == (1e6, 2e6, 0.0, 0.0)
        async with bob.serve(Endpoint("bob", 1)) as server:
            server.add(Service("Sink", streams={"Take": take}))
            async with alice.stream(server.endpoint, Method("Sink", "Take", Lane.BULK)) as stream:
                began = loop.time()
                for _ in range(3):
                    await stream.send(bytes(1_000_000))
                await stream.finish()
                assert await stream.receive() is None
        assert [when - began for when in came] == pytest.approx([1.1, 2.1, 3.1])

    run_virtual(scenario())
