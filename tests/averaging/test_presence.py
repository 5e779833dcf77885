"""Who waits at a leader sees whether it still answers."""

from __future__ import annotations

import asyncio

import pytest

from distqat.averaging import messages, rendezvous
from distqat.averaging.group import Contact
from distqat.averaging.presence import PROBES, while_there
from distqat.errors import DistqatError, UnreachableError
from distqat.ids import PeerId
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service
from tests.averaging.swarm import DILOCO, Node, Swarm, founded, together
from tests.averaging.words import round_ref
from tests.sim.gate import Gate
from tests.support import run_virtual

NAMES = ("alice", "bob")
FIRST, SECOND = rendezvous.order(round_ref(1), [PeerId(name) for name in NAMES])
"""The leader of the second round, and its member."""


def contact(node: Node) -> Contact:
    return Contact(node.peer, node.averager.context.endpoint)


async def never() -> None:
    await asyncio.Event().wait()


def test_a_leader_that_is_stopped_is_left_within_the_wait_for_an_answer() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO)
        gate = Gate(swarm.network.transport("alice"))
        async with swarm.node("alice", gate) as alice, swarm.node("bob") as bob:
            context, loop = bob.averager.context, asyncio.get_running_loop()
            gate.stop()
            began = loop.time()
            with pytest.raises(UnreachableError, match=r"has not answered for 0\.75 s"):
                await while_there(context, contact(alice), never, is_watched=True)
            assert loop.time() - began == pytest.approx(context.waits.invite * (1 + 1 / PROBES))
            # Not watched, it is waited for as long as it is in the directory.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10.0):
                    await while_there(context, contact(alice), never, is_watched=False)
            gate.go_on()

    run_virtual(scenario())


@pytest.mark.parametrize("error", [None, DistqatError("no")], ids=["answers", "refuses"])
def test_one_that_answers_is_waited_for(error: DistqatError | None) -> None:
    async def scenario() -> None:
        swarm, asked = Swarm(Network(delay=0.01), DILOCO), 0

        async def answer(request: bytes, caller: Caller) -> bytes:
            nonlocal asked
            asked += 1
            # Every third question is lost on the way.
            if asked % 3 == 0:
                await never()
            if error is not None:
                raise error
            return b""

        async with swarm.node("alice") as alice, swarm.node("bob") as bob:
            server = swarm.network.servers[contact(alice).endpoint]
            await server.remove(messages.AVERAGING)
            server.add(Service(messages.AVERAGING, {messages.PROBE.name: answer}, {}))

            async def work() -> str:
                await asyncio.sleep(20.0)
                return "done"

            assert await while_there(bob.averager.context, contact(alice), work, is_watched=True) == "done"
            assert asked > 20

    run_virtual(scenario())


def test_a_wait_that_is_soon_over_costs_no_question() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO)
        gate = Gate(swarm.network.transport("bob"))
        async with swarm.node("alice") as alice, swarm.node("bob", gate) as bob:
            await while_there(bob.averager.context, contact(alice), lambda: asyncio.sleep(0.1), is_watched=True)
            assert gate.count == 0

    run_virtual(scenario())


def test_a_leader_that_is_merely_slow_is_waited_for() -> None:
    """It is in a long step, and answers meanwhile."""

    async def scenario() -> None:
        async with founded(NAMES, DILOCO, Network(delay=0.01)) as (swarm, nodes):
            await together(*(node.averager.synchronise(node.anchor + 1.0, 1) for node in nodes))
            slow, quick = swarm.nodes[FIRST], swarm.nodes[SECOND]

            async def later() -> None:
                await asyncio.sleep(3.0)
                await slow.averager.synchronise(slow.anchor + 1.0, 1)

            results = await together(later(), quick.averager.synchronise(quick.anchor + 1.0, 1))
            assert not [result for result in results if isinstance(result, DistqatError)]
            assert set(quick.averager.receipts[-1].contributors) == set(NAMES)
            assert not quick.lost

    run_virtual(scenario())


def test_who_was_stopped_itself_suspects_nobody() -> None:
    """Its clock has gone on meanwhile, and its questions have not."""

    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO)
        async with swarm.node("alice") as alice, swarm.node("bob") as bob:
            loop = asyncio.get_running_loop()

            async def work() -> str:
                await asyncio.sleep(2.0)
                # The whole loop stands still, and many timers are due at once.
                loop._now += 60.0  # type: ignore[attr-defined]
                await asyncio.sleep(2.0)
                return "done"

            assert await while_there(bob.averager.context, contact(alice), work, is_watched=True) == "done"

    run_virtual(scenario())
