"""Outer rounds while things befall the siblings, in virtual time: see `rounds`. `pytest ...[SEED]` replays a run."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import pytest

from distqat.averaging.rendezvous import order
from distqat.errors import DistqatError, RoundError
from distqat.ids import PeerId
from distqat.rpc.local import Network, VirtualTimeLoop
from distqat.sections import SyncSection
from tests.averaging.swarm import DILOCO, Node, Swarm, moved, together
from tests.averaging.words import round_ref
from tests.sim.gate import Gate, nothing
from tests.sim.rounds import LEASE, Plan, World, simulate

pytestmark = pytest.mark.sim

T = TypeVar("T")

CHURN = Plan(is_founded_first=False)
CUTS = Plan(cuts=True)
STOPS = Plan(stops=True)
LOSSES = Plan(loss=0.03, duplicate=0.03)
EVERYTHING = Plan(stops=True, cuts=True, loss=0.02, duplicate=0.02)
MANY = Plan(sizes=(12, 20), stops=True, cuts=True)


def check(world: World) -> None:
    """Something has happened; that rounds go on afterwards is seen by the world itself."""
    assert world.faults or world.plan.loss
    assert world.num_commits


@pytest.mark.parametrize("seed", range(45))
def test_churn(seed: int) -> None:
    """Siblings crash, also at any of their messages, and come back without memory; from the first round on."""
    check(simulate(seed, CHURN))


@pytest.mark.parametrize("seed", range(100, 145))
def test_cuts(seed: int) -> None:
    """The network is cut in two, or one way only, again and again."""
    check(simulate(seed, CUTS))


@pytest.mark.parametrize("seed", range(200, 240))
def test_stops(seed: int) -> None:
    """Siblings are stopped, also at any of their messages, and go on later as if nothing had been."""
    check(simulate(seed, STOPS))


@pytest.mark.parametrize("seed", range(300, 330))
def test_losses(seed: int) -> None:
    """Messages and answers get lost, requests come twice and overtake each other."""
    check(simulate(seed, LOSSES))


@pytest.mark.parametrize("seed", range(400, 440))
def test_everything(seed: int) -> None:
    check(simulate(seed, EVERYTHING))


@pytest.mark.parametrize("seed", range(500, 502))
def test_many(seed: int) -> None:
    check(simulate(seed, MANY))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10_000, 14_000))
def test_soak(seed: int) -> None:
    """Thousands of runs of all kinds."""
    plans = (CHURN, CUTS, STOPS, LOSSES, EVERYTHING)
    check(simulate(seed, plans[seed % len(plans)] if seed % 50 else MANY))


@pytest.mark.parametrize("size", [24, pytest.param(64, marks=pytest.mark.soak)])
def test_three_of_many_die_at_once(size: int) -> None:
    """The leader is among them; the others commit that round, and the next one."""

    async def scenario() -> None:
        names = [f"peer{index:02}" for index in range(size)]
        async with started(names, Network(seed=3, delay=0.01)) as (swarm, nodes, _):
            victims = order(round_ref(0), nodes)[:3]

            async def strike() -> None:
                await asyncio.sleep(0.055)
                for victim in victims:
                    swarm.crash(nodes[victim])

            rest = [node for node in nodes.values() if node.peer not in victims]
            dying = [nodes[victim].averager.synchronise(moved(swarm, 1.0), 1) for victim in victims]
            works = [train(node, 2) for node in rest]
            results = await together(*works, *dying, strike())
            assert not [result for result in results[: len(rest)] if isinstance(result, DistqatError)]
            assert len({node.digest for node in rest}) == 1
            assert len(rest[0].averager.receipts[-1].contributors) == size - 3

    run(scenario())


# One fault at every message of one round.

NAMES = ("alice", "bob", "carol")


def run(scenario: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)


@asynccontextmanager
async def started(
    names: Sequence[str], network: Network, sync: SyncSection = DILOCO
) -> AsyncIterator[tuple[Swarm, dict[PeerId, Node], dict[PeerId, Gate]]]:
    """Siblings that have founded the run, each behind a gate."""
    swarm = Swarm(network, sync, parameters=2 * len(names))
    async with AsyncExitStack() as stack:
        gates = {PeerId(name): Gate(network.transport(name)) for name in names}
        for name, gate in gates.items():
            node = await stack.enter_async_context(swarm.node(name, gate))
            await node.averager.found(swarm.start())
        yield swarm, swarm.nodes, gates


def at_message(victim: PeerId, at: int, fault: str) -> int:
    """Two rounds; in the second one the fault happens at that message of the victim. How many messages it has seen.

    The others end up with equal states, whatever happens; and with the victim, once it is back.
    """

    async def scenario() -> int:
        network = Network(seed=1, delay=0.01)
        async with started(NAMES, network) as (swarm, nodes, gates):
            await together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in nodes.values()))
            assert {node.sibling.round for node in nodes.values()} == {1}
            gate, dead = gates[victim], nodes[victim]
            others = [node for node in nodes.values() if node is not dead]
            left = itertools.count(at, -1)
            gate.count = 0

            async def strike(what: str) -> None:
                if next(left) == 0:
                    if fault == "crash":
                        swarm.crash(dead)
                        dead.is_live = False
                    elif fault == "stop":
                        gate.stop()
                        await gate.passes(what)
                    else:
                        network.partition({victim}, {node.peer for node in others})

            gate.hook = strike
            works = [node.averager.synchronise(node.anchor + 1.0, 1) for node in nodes.values()]
            async with asyncio.TaskGroup() as group:
                group.create_task(recover(network, dead, gate, fault))
                results = await together(*works)
            failed = [
                one for one, result in zip(nodes.values(), results, strict=True) if isinstance(result, DistqatError)
            ]
            gate.hook, num_messages = nothing, gate.count
            assert not set(failed) & set(others), (
                f"{[result for result in results if isinstance(result, DistqatError)]}"
            )
            await agree(swarm, [node for node in nodes.values() if not node.has_crashed])
            return num_messages

    return run(scenario())


async def recover(network: Network, victim: Node, gate: Gate, fault: str) -> None:
    """The lease ends, then a stop or a cut does."""
    if fault != "crash":
        await asyncio.sleep(LEASE)
        victim.is_live = False
        await asyncio.sleep(1.0)
        network.heal()
        gate.go_on()
        victim.is_live = not victim.has_crashed


async def agree(swarm: Swarm, nodes: Sequence[Node]) -> None:
    """Whoever has fallen behind comes along in the next round; nobody has two results of one."""
    for node in nodes:
        rounds = [receipt.round for receipt in node.averager.receipts]
        assert len(set(rounds)) == len(rounds)
    for first, second in itertools.combinations(nodes, 2):
        theirs = {receipt.round: receipt.digest for receipt in second.averager.receipts}
        for receipt in first.averager.receipts:
            assert theirs.get(receipt.round, receipt.digest) == receipt.digest
    target = max(node.sibling.round for node in nodes) + 2
    results = await together(*(train(node, target) for node in nodes))
    assert not [result for result in results if isinstance(result, DistqatError)]
    assert len({node.digest for node in nodes}) == 1


async def train(node: Node, target: int) -> None:
    """One round after the other, up to that one. One that could not be decided fails again at once, for a second, until
    those for want of whom it failed have been rung."""
    until = asyncio.get_running_loop().time() + 1.0
    while node.sibling.round < target:
        try:
            await node.averager.synchronise(node.anchor + 1.0, 1)
        except RoundError:
            if asyncio.get_running_loop().time() > until:
                raise
            await asyncio.sleep(0.1)


LEADER, SECOND, LAST = order(round_ref(1), [PeerId(name) for name in NAMES])


VICTIMS = pytest.mark.parametrize("victim", [LEADER, SECOND, LAST], ids=["leader", "second", "last"])


@VICTIMS
def test_a_crash_at_every_message_of_a_round(victim: PeerId) -> None:
    num_messages = at_message(victim, 10_000, "crash")
    assert num_messages > 20
    for at in range(num_messages + 1):
        at_message(victim, at, "crash")


@VICTIMS
@pytest.mark.parametrize("fault", ["stop", "cut"])
def test_a_stop_or_a_cut_at_every_third_message(victim: PeerId, fault: str) -> None:
    for at in range(NAMES.index(victim), at_message(victim, 10_000, fault) + 1, 3):
        at_message(victim, at, fault)


@pytest.mark.soak
@VICTIMS
@pytest.mark.parametrize("fault", ["stop", "cut"])
def test_a_stop_or_a_cut_at_every_message(victim: PeerId, fault: str) -> None:
    for at in range(at_message(victim, 10_000, fault) + 1):
        at_message(victim, at, fault)
