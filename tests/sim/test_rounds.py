"""Outer rounds under churn: siblings of unequal speed that crash, come back and live far apart, in virtual time.

The invariants that no fault may break: siblings that live hold the same result of every round that they committed; no
sibling commits two results for one round; every call of `synchronise` ends within its bound; and once the faults end,
all agree.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import pytest
import torch

from distqat.averaging.committed import Receipt
from distqat.averaging.outer import OuterState
from distqat.errors import RoundError, StateError
from distqat.rpc.local import Network, VirtualTimeLoop
from distqat.sections import SyncSection
from tests.averaging.swarm import Node, Swarm
from tests.support import until

pytestmark = pytest.mark.sim

SYNC = SyncSection(warmup_steps=3, inner_steps=4, max_wait=4.0)
LEASE = 3.0
SECONDS = 5.0
"""Of faults; afterwards all have time to agree."""


class World:
    """One seeded run."""

    def __init__(self, seed: int, has_cuts: bool = False) -> None:
        self.random = random.Random(seed)
        self.has_cuts = has_cuts  # The network is cut in two now and then; each side may go on by itself.
        delay = self.random.choice([0.0, 0.002, 0.02, 0.1])
        self.swarm = Swarm(Network(seed, delay=delay, jitter=delay), SYNC, parameters=12, buffers=2)
        self.names = [f"peer{index}" for index in range(self.random.randint(2, 8))]
        self.lives: dict[str, asyncio.Task[None]] = {}  # The incarnation of each name that lives now.
        self.num_crashes = 0
        self.num_commits = 0
        self.num_failures = 0
        self.slowest = 0.0

    @property
    def live(self) -> list[Node]:
        """Those that have not crashed and have state."""
        return [node for node in self.swarm.nodes.values() if not node.has_crashed and node.sibling.ready]

    async def run(self) -> None:
        """Found, let things happen, and see that all agree."""
        async with asyncio.TaskGroup() as group:
            for name in self.names:
                self.lives[name] = group.create_task(self._live(name, is_founder=True))
            await asyncio.sleep(0)
            await self._befall(group)
            await self._agree()
            for task in self.lives.values():
                task.cancel()

    async def _befall(self, group: asyncio.TaskGroup) -> None:
        """Crashes and returns."""
        loop = asyncio.get_running_loop()
        while loop.time() < SECONDS:
            await asyncio.sleep(self.random.uniform(0.2, 2.5))
            live = self.live
            if self.has_cuts and self.random.random() < 0.5:
                await self._cut()
            elif len(live) > 1 and self.random.random() < 0.8:
                victim = self.random.choice(live)
                self.swarm.crash(victim)
                self.lives[victim.peer].cancel()
                self.num_crashes += 1
                group.create_task(self._bury(victim))
                group.create_task(self._return(victim.peer, group))

    async def _cut(self) -> None:
        """For a while no packet passes between two sides; the directory does not notice."""
        side = {name for name in self.names if self.random.random() < 0.4}
        self.swarm.network.partition(side, set(self.names) - side)
        await asyncio.sleep(self.random.uniform(0.1, 4.0))
        self.swarm.network.heal()

    async def _bury(self, node: Node) -> None:
        await asyncio.sleep(LEASE)
        node.is_live = False

    async def _return(self, name: str, group: asyncio.TaskGroup) -> None:
        await asyncio.sleep(self.random.uniform(0.1, 5.0))
        self.lives[name] = group.create_task(self._live(name, is_founder=False))

    async def _live(self, name: str, is_founder: bool) -> None:
        """One incarnation of a sibling: found or catch up, then train."""
        async with AsyncExitStack() as stack:
            node = await stack.enter_async_context(self.swarm.node(name))
            self._observe(node)
            if is_founder:
                await node.averager.found(self.swarm.start())
            while not node.sibling.ready:
                try:
                    await node.averager.catch_up(self.swarm.siblings(node.peer))
                except StateError:
                    await asyncio.sleep(0.3)
            await self._train(node)

    async def _train(self, node: Node) -> None:
        seconds = self.random.choice([0.05, 0.2, 0.5])
        local, steps = node.anchor, 0
        while True:
            if self.random.random() < 0.1:
                # Nothing to do for a while: it comes only if it is invited.
                with suppress(TimeoutError):
                    async with asyncio.timeout(3.0):
                        await node.averager.wait_invited()
            else:
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * seconds)
                local, steps = local + self.random.uniform(-1.0, 1.0), steps + 1
            if node.averager.is_due(steps):
                local, steps = await self._synchronise(node, local, steps)

    async def _synchronise(self, node: Node, local: torch.Tensor, steps: int) -> tuple[torch.Tensor, int]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        before = node.averager.outer
        try:
            local, steps = await node.averager.synchronise(local, 8 * steps), 0
        except RoundError:
            self.num_failures += 1
            assert node.averager.outer is before, "a call that fails changes nothing"
        seconds = loop.time() - began
        self.slowest = max(self.slowest, seconds)
        assert seconds <= node.averager.context.waits.total + 1e-6
        return local, steps

    def _observe(self, node: Node) -> None:
        """Check the invariants at the very moment of every commit."""
        commit: Callable[[OuterState, Receipt], None] = node.averager.committed.commit

        def observed(state: OuterState, receipt: Receipt) -> None:
            assert state.round == receipt.round + 1
            assert receipt.samples > 0
            assert all(other.round != receipt.round for other in node.averager.receipts), "one round, two results"
            commit(state, receipt)
            self.num_commits += 1
            for other in self.live:
                for theirs in other.averager.receipts:
                    if theirs.round == receipt.round and not self.has_cuts:
                        assert theirs.digest == receipt.digest, f"{node} and {other} differ on round {receipt.round}"

        node.averager.committed.commit = observed  # type: ignore[method-assign]

    async def _agree(self) -> None:
        """Everyone comes back, and before long all hold the same."""
        await until(
            lambda: len(self.live) == len(self.names) and len({node.digest for node in self.live}) == 1, timeout=60.0
        )


def simulate(world: World) -> None:
    torch.set_num_threads(1)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(world.run())


@pytest.mark.parametrize("seed", range(32))
def test_churn(seed: int) -> None:
    world = World(seed)
    simulate(world)
    assert world.num_commits >= len(world.names)
    assert world.num_crashes


@pytest.mark.parametrize("seed", range(100, 110))
def test_cuts(seed: int) -> None:
    """Two sides may commit different results of a round; every call still ends, and in the end all agree."""
    world = World(seed, has_cuts=True)
    simulate(world)
    assert world.num_commits >= len(world.names)
