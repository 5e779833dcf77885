"""Who waits for whom: invitations, idle and slow siblings, and what forming costs."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from distqat.averaging.waits import LEAST_PATIENCE
from distqat.errors import RoundError
from distqat.rpc.local import Network
from tests.averaging.swarm import DILOCO, PLAIN, Node, Swarm, founded, moved, together
from tests.averaging.trap import Trap
from tests.support import run_virtual, until


def digests(nodes: list[Node]) -> set[str]:
    return {node.digest for node in nodes}


def test_a_slow_sibling_joins_early_with_the_samples_it_has() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"], network=Network(delay=0.005)) as (swarm, [alice, bob]):

            async def slow() -> None:
                # A step takes 0.4 s; after the second one it finds the invitation.
                samples = 0
                while not bob.averager.is_due(0):
                    await asyncio.sleep(0.4)
                    samples += 8
                await bob.averager.synchronise(moved(swarm, 2.0), samples)

            loop = asyncio.get_running_loop()
            await asyncio.sleep(0.5)
            began = loop.time()
            task = together(alice.averager.synchronise(moved(swarm, 1.0), 48), slow())
            await task
            assert loop.time() - began < 0.5
            receipt = alice.averager.receipts[-1]
            assert (receipt.contributors, receipt.samples) == (("alice", "bob"), 56)
            assert len(digests([alice, bob])) == 1

    run_virtual(scenario())


def test_an_idle_sibling_joins_at_once_and_only_receives() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"], DILOCO, Network(delay=0.005)) as (_swarm, [alice, bob]):

            async def idle() -> None:
                await bob.averager.wait_invited()
                await bob.averager.synchronise(bob.anchor, 0)

            for _ in range(2):
                await together(alice.averager.synchronise(alice.anchor + 1.0, 4), idle())
                assert len(digests([alice, bob])) == 1
                assert not alice.averager.invited
                assert not bob.averager.invited
                assert bob.averager.receipts[-1].contributors == ("alice",)
            assert asyncio.get_running_loop().time() < 0.5

    run_virtual(scenario())


def test_a_live_sibling_that_never_comes_is_waited_for_only_so_long() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"]) as (swarm, [alice, bob]):
            loop = asyncio.get_running_loop()
            begin = loop.time()
            await alice.averager.synchronise(moved(swarm, 1.0), 1)
            # Either way it ends after the longest wait: bob, if he leads, says then that he is not there.
            assert PLAIN.max_wait <= loop.time() - begin < 2 * PLAIN.max_wait + 1
            assert (alice.sibling.round, bob.sibling.round) == (1, 0)
            assert bob.averager.invited

    run_virtual(scenario())


def test_who_is_held_up_keeps_nobody_waiting_and_comes_when_its_step_is_done() -> None:
    """Of two, the first in the order goes on alone. The other may not: its rounds fail at once until both are there."""

    async def scenario(name: str) -> int:
        async with founded(["alice", "bob"], DILOCO, Network(delay=0.005)) as (_swarm, nodes):
            [alone, late] = sorted(nodes, key=lambda node: node.peer != name)
            loop, failures = asyncio.get_running_loop(), 0
            await together(*(node.averager.synchronise(node.anchor + 1.0, 1) for node in nodes))
            late.averager.is_held_up = lambda: True
            began = loop.time()
            for _ in range(5):
                [result] = await together(alone.averager.synchronise(alone.anchor + 1.0, 1))
                failures += isinstance(result, RoundError)
                await asyncio.sleep(1.0)
            assert loop.time() - began < 5.5, "five steps, and next to nothing beside"
            late.averager.is_held_up = lambda: False
            assert late.averager.invited
            began = loop.time()
            async with asyncio.TaskGroup() as group:
                training = [group.create_task(train(node)) for node in nodes]
                await until(lambda: set(late.averager.receipts[-1].contributors) == {"alice", "bob"}, timeout=5.0)
                await until(lambda: len(digests(nodes)) == 1, timeout=5.0)
                for task in training:
                    task.cancel()
            assert loop.time() - began < 2.0
            return failures

    async def train(node: Node) -> None:
        while True:
            await together(node.averager.synchronise(node.anchor + 1.0, 1))
            await asyncio.sleep(0.2)

    async def both() -> None:
        assert sorted([await scenario("alice"), await scenario("bob")]) == [0, 5]

    run_virtual(both())


def test_the_wait_for_a_missing_sibling_is_learned() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob", "carol"]) as (swarm, nodes):
            for _ in range(4):
                await together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in nodes))
            # Whoever has led knows by now that all come within moments, and nobody else knows anything.
            patience = {node.averager.pursuit.round.form.patience.seconds() for node in nodes}
            assert LEAST_PATIENCE in patience <= {LEAST_PATIENCE, PLAIN.max_wait}

    run_virtual(scenario())


def test_while_it_waits_it_says_for_whom() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"]) as (swarm, nodes):
            seen: set[str] = set()

            async def watch() -> None:
                for _ in range(20):
                    seen.add(str(nodes[0].averager.reason))
                    await asyncio.sleep(0.05)

            async def late() -> None:
                await asyncio.sleep(0.5)
                await nodes[1].averager.synchronise(moved(swarm, 1.0), 1)

            await together(nodes[0].averager.synchronise(moved(swarm, 1.0), 1), watch(), late())
            assert any("round 0 of stage 1: waiting for bob" in reason for reason in seen)
            assert str(nodes[0].averager.reason) == "stage 1: 1 rounds committed"
            assert "round 1" in repr(nodes[0].averager)

    run_virtual(scenario())


def test_forming_costs_little_when_all_are_ready() -> None:
    """From the last call to the first byte. Not in debug mode: it is the machine's time that counts."""

    async def scenario() -> float:
        network, sent = Network(), []
        swarm = Swarm(network, PLAIN)

        async def note(what: str) -> None:
            if what == "send":
                sent.append(time.perf_counter())

        async with AsyncExitStack() as stack:
            for name in ("alice", "bob", "carol", "dave"):
                trap = Trap(network.transport(name))
                trap.hook = note
                node = await stack.enter_async_context(swarm.node(name, trap))
                await node.averager.found(swarm.start())
            nodes, best = list(swarm.nodes.values()), 1.0
            for _ in range(5):
                sent.clear()
                began = time.perf_counter()
                await together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in nodes))
                best = min(best, sent[0] - began)
            assert len(digests(nodes)) == 1
            return best

    assert asyncio.run(scenario()) < 0.05


def test_an_averager_that_closes_sends_its_guests_away() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"]) as (swarm, nodes):
            # Whoever waits at a sibling that leaves goes on without it.
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(nodes[0].averager.synchronise(moved(swarm, 1.0), 1))]
                await asyncio.sleep(0.2)
                nodes[1].averager.pursuit.stop("bob leaves stage 1")
                nodes[1].is_live = False
                await until(tasks[0].done)
            assert nodes[0].sibling.round == 1

    run_virtual(scenario())
