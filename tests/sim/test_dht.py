"""Whole DHTs in virtual time: churn, loss, lies, and halves that find each other. A dictionary is the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from distqat.discovery import keys, messages
from distqat.discovery.calls import Contact, StoreReply, StoreRequest
from distqat.discovery.node import DhtNode
from distqat.discovery.protocol import DhtSettings
from distqat.discovery.records import SignedRecord
from distqat.ids import Endpoint, PeerId, RunId
from distqat.rpc.local import Network
from distqat.rpc.transport import Deadline
from distqat.rpc.virtual import VirtualTimeLoop
from tests.discovery.helpers import a_node, a_record, address, forged

pytestmark = pytest.mark.sim

TTL = 24.0
RUNS = keys.RUNS
SHARD = keys.experts(RunId("sim", "0" * 32), 0)
SETTINGS = DhtSettings(refresh=60.0)


def simulate(scenario: Coroutine[object, object, None]) -> None:
    """Run in virtual time, without asyncio's debug mode, which makes large swarms ten times slower."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario)


@dataclass
class Swarm:
    """Nodes that come, go and die, and the oracle: who says what now."""

    network: Network
    group: asyncio.TaskGroup
    settings: DhtSettings = SETTINGS
    nodes: dict[int, DhtNode] = field(default_factory=dict)
    born: asyncio.Event = field(default_factory=asyncio.Event)
    truth: dict[str, dict[PeerId, bytes]] = field(default_factory=dict)
    ended: dict[int, asyncio.Event] = field(default_factory=dict)
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def open(cls, network: Network, settings: DhtSettings = SETTINGS) -> AsyncIterator[Swarm]:
        """An empty swarm; at the end all hosts crash, since goodbyes of a crowd take long."""
        async with asyncio.TaskGroup() as group:
            swarm = cls(network, group, settings)
            yield swarm
            for number in list(swarm.nodes):
                await swarm.crash(number)

    async def add(self, number: int, join: Sequence[int]) -> DhtNode:
        """A daemon comes."""
        self.ended[number] = asyncio.Event()
        self.tasks[number] = self.group.create_task(self._live(number, join))
        while number not in self.nodes:
            self.born.clear()
            await self.born.wait()
        return self.nodes[number]

    async def grow(self, numbers: range) -> None:
        """So many come at once, all through the first."""
        for number in numbers:
            await self.add(number, [numbers[0]] if number != numbers[0] else [])
        for number in numbers[1:]:
            await self.nodes[number].wait_joined()

    async def publish(self, number: int, key: str) -> None:
        """It says something under a key, for as long as it lives."""
        node, value = self.nodes[number], f"{number} says {key}".encode()
        self.truth.setdefault(key, {})[node.peer] = value
        await node.publish(key, value, TTL)

    async def publish_all(self, numbers: Sequence[int], *under: str) -> None:
        """All of these say something under each of the keys."""
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                for key in under:
                    group.create_task(self.publish(number, key))

    async def leave(self, number: int) -> None:
        """It says goodbye."""
        self._forget(number)
        self.ended[number].set()
        await self.tasks[number]

    async def crash(self, number: int) -> None:
        """It is gone without a word."""
        self._forget(number)
        self.network.crash(f"host{number}")
        self.tasks[number].cancel()
        await asyncio.wait([self.tasks[number]])

    async def found(self, number: int, key: str) -> dict[PeerId, bytes]:
        """What one node finds."""
        return {record.author: record.value for record in await self.nodes[number].lookup(key)}

    async def check(self, readers: Sequence[int], *under: str) -> None:
        """What each reader finds is what the oracle says."""
        for key in under:
            async with asyncio.TaskGroup() as group:
                lookups = {number: group.create_task(self.found(number, key)) for number in readers}
            for number, lookup in lookups.items():
                found, truth = lookup.result(), self.truth.get(key, {})
                assert truth.keys() - found.keys() == set(), f"node {number} misses live records of {key}"
                assert found.keys() - truth.keys() == set(), f"node {number} finds dead records of {key}"
                assert found == truth

    def _forget(self, number: int) -> None:
        node = self.nodes.pop(number)
        for said in self.truth.values():
            said.pop(node.peer, None)

    async def _live(self, number: int, join: Sequence[int]) -> None:
        async with a_node(self.network, number, join, self.settings) as node:
            self.nodes[number] = node
            self.born.set()
            await self.ended[number].wait()


async def tell(network: Network, to: int, *records: SignedRecord) -> StoreReply:
    """A stranger asks a node to keep records, until an answer gets through."""
    request = messages.encode_store_request(StoreRequest(Contact(b"s" * 20, Endpoint("stranger", 1)), records))
    lossless = network.loss
    network.loss = 0.0
    reply = await network.transport("stranger").call(address(to), messages.STORE, request, Deadline.after(5))
    network.loss = lossless
    return messages.decode_store_reply(reply)


async def refuse_lies(swarm: Swarm, random: Random) -> None:
    """Forged, replayed and prolonged records are refused wherever they are told."""
    holders = [number for number, node in swarm.nodes.items() if node.held(RUNS)]
    for number in random.sample(holders, 4):
        store = swarm.nodes[number]._store
        where, now = keys.key_id(RUNS), asyncio.get_running_loop().time()
        copy = random.choice([record for record in store.signed(where, now) if record.remaining > 1])
        before = store.get(where, now)
        lie = forged(a_record(author=500, key=RUNS, sequence=1 << 40, value=b"lie"), author=1)
        prolonged = replace(copy, remaining=1e6)
        reply = await tell(swarm.network, number, lie, prolonged)
        assert "signature" in reply.refused[0]
        assert reply.kept == 1 or "is older" in reply.refused[1], "the copy is held already, or was replaced meanwhile"
        later = asyncio.get_running_loop().time()
        after = {record.author: record for record in store.get(where, later)}
        for record in before:
            kept = after.get(record.author)
            assert kept is None or kept.sequence > record.sequence or kept.remaining <= record.remaining


async def churn(swarm: Swarm, random: Random, num_dead: int, num_new: int) -> None:
    """Some crash, some leave, and as many come, over five seconds."""
    victims = random.sample(sorted(swarm.nodes), num_dead)
    new = range(1000, 1000 + num_new)
    for victim, newcomer in zip(victims, new, strict=True):
        entrance = random.choice([number for number in swarm.nodes if number not in victims])
        await swarm.add(newcomer, [entrance])
        await (swarm.leave(victim) if random.random() < 0.3 else swarm.crash(victim))
        swarm.group.create_task(swarm.publish(newcomer, RUNS))
        await asyncio.sleep(5 / num_dead)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 6))])
def test_64_nodes_with_churn_and_loss_agree_with_the_oracle(seed: int) -> None:
    """20 % of the nodes are replaced, 10 % of all messages lost; live records are found, dead ones gone in time."""

    async def scenario() -> None:
        random = Random(seed)
        network = Network(seed, delay=0.02, jitter=0.03, loss=0.1)
        async with Swarm.open(network) as swarm:
            await swarm.grow(range(64))
            await swarm.publish_all(range(0, 64, 4), RUNS)
            await swarm.publish_all(range(1, 64, 16), SHARD)
            await asyncio.sleep(TTL / 3)
            await swarm.check(random.sample(sorted(swarm.nodes), 6), RUNS, SHARD)
            await refuse_lies(swarm, random)
            await churn(swarm, random, num_dead=13, num_new=13)
            await asyncio.sleep(TTL + 1)
            await swarm.check(random.sample(sorted(swarm.nodes), 6), RUNS, SHARD)

    simulate(scenario())


@pytest.mark.parametrize("seed", [3, 4])
def test_the_dead_are_not_brought_back_by_replays(seed: int) -> None:
    async def scenario() -> None:
        random = Random(seed)
        network = Network(seed, delay=0.02, jitter=0.03)
        async with Swarm.open(network) as swarm:
            await swarm.grow(range(16))
            await swarm.publish_all(range(16), RUNS)
            now = asyncio.get_running_loop().time()
            copies = swarm.nodes[0]._store.signed(keys.key_id(RUNS), now)
            await swarm.check(range(16), RUNS)
            dead = random.sample(range(1, 16), 4)
            for number in dead:
                await (swarm.crash(number) if number % 2 else swarm.leave(number))
            for _ in range(3):
                await asyncio.sleep(TTL + 1)
                for number in swarm.nodes:
                    await tell(network, number, *(replace(copy, remaining=1e6) for copy in copies))
                await swarm.check(sorted(swarm.nodes), RUNS)

    simulate(scenario())


@pytest.mark.parametrize("seed", [5, 6])
def test_two_half_swarms_heal_after_a_partition(seed: int) -> None:
    """Long enough that each half has forgotten the other; no address is given again."""

    async def scenario() -> None:
        network = Network(seed, delay=0.01)
        settings = DhtSettings(refresh=10.0)
        async with Swarm.open(network, settings) as swarm:
            await swarm.grow(range(16))
            await swarm.publish_all(range(16), RUNS)
            await asyncio.sleep(TTL / 3)
            await swarm.check(range(16), RUNS)
            left, right = [f"host{number}" for number in range(8)], [f"host{number}" for number in range(8, 16)]
            network.partition(left, right)
            await asyncio.sleep(3 * TTL)
            assert len(await swarm.found(0, RUNS)) == len(await swarm.found(15, RUNS)) == 8
            network.heal()
            await asyncio.sleep(3 * settings.refresh)
            await swarm.check(range(16), RUNS)

    simulate(scenario())


@pytest.mark.parametrize("seed", [7, 8])
def test_two_swarms_become_one_when_one_learns_an_address(seed: int) -> None:
    async def scenario() -> None:
        network = Network(seed, delay=0.01)
        settings = DhtSettings(refresh=10.0)
        async with Swarm.open(network, settings) as swarm:
            await swarm.grow(range(10))
            await swarm.grow(range(100, 110))
            everyone = sorted(swarm.nodes)
            await swarm.publish_all(everyone, RUNS)
            await asyncio.sleep(TTL / 3)
            assert len(await swarm.found(0, RUNS)) == len(await swarm.found(100, RUNS)) == 10
            swarm.nodes[3].bootstrap([address(107)])
            await asyncio.sleep(3 * settings.refresh)
            await swarm.check(everyone, RUNS)

    simulate(scenario())
