"""Who waits at a leader sees whether it still answers."""

from __future__ import annotations

import asyncio
import math

import pytest

from distqat.averaging import messages, rendezvous
from distqat.averaging.group import Contact
from distqat.averaging.presence import PROBES, while_there
from distqat.averaging.waits import Waits
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

PATIENCE = Waits.of(DILOCO, 0).invite


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
                await while_there(context, contact(alice), never, patience=PATIENCE)
            assert loop.time() - began == pytest.approx(context.waits.invite * (1 + 1 / PROBES))
            # Not watched, it is waited for as long as it is in the directory.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10.0):
                    await while_there(context, contact(alice), never, patience=math.inf)
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

            assert await while_there(bob.averager.context, contact(alice), work, patience=PATIENCE) == "done"
            assert asked > 20

    run_virtual(scenario())


def test_a_wait_that_is_soon_over_costs_no_question() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO)
        gate = Gate(swarm.network.transport("bob"))
        async with swarm.node("alice") as alice, swarm.node("bob", gate) as bob:
            await while_there(bob.averager.context, contact(alice), lambda: asyncio.sleep(0.1), patience=PATIENCE)
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


def test_siblings_far_apart_go_on_sharing_rounds() -> None:
    """An answer takes twice as long as a near sibling may be silent; that is learned from the first mistakes."""

    async def scenario() -> None:
        setting = DILOCO.model_copy(update={"max_wait": 20.0})
        async with founded(NAMES, setting, Network(delay=0.75)) as (_, nodes):
            for number in range(10):
                await together(*(node.averager.synchronise(node.anchor + 1.0, 1) for node in nodes))
                if number >= 4:
                    assert [set(node.averager.receipts[-1].contributors) for node in nodes] == [set(NAMES)] * 2
                    assert [node.averager.receipts[-1].round for node in nodes] == [nodes[0].sibling.round - 1] * 2
                await asyncio.sleep(20.0)
            assert nodes[0].sibling.round == nodes[1].sibling.round >= 9

    run_virtual(scenario(), timeout=1000.0)


def test_an_answer_counts_however_late_it_comes() -> None:
    """One that stands still for a second again and again; after the first time it is given longer."""

    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO)
        gate = Gate(swarm.network.transport("alice"))
        async with swarm.node("alice", gate) as alice, swarm.node("bob") as bob:

            async def work() -> str:
                for seconds in (0.5, 1.0, 1.5, 2.5):
                    await asyncio.sleep(3.0)
                    gate.stop()
                    await asyncio.sleep(seconds)
                    gate.go_on()
                await asyncio.sleep(3.0)
                return "done"

            assert await while_there(bob.averager.context, contact(alice), work, patience=PATIENCE) == "done"

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

            assert await while_there(bob.averager.context, contact(alice), work, patience=PATIENCE) == "done"

    run_virtual(scenario())
