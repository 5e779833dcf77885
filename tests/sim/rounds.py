"""Siblings whose rounds are watched while things befall them: crashes, returns, stops, cuts, lost and doubled messages.

What no fault may break, checked at the very moment of every commit: all siblings that live hold the same result of
every round; none commits two results of one round; the result is the plain average of what its contributors brought,
each of them once. Every call ends within its bound. After the last fault all agree, and go on.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import torch

from distqat.averaging.averager import Outcome
from distqat.averaging.contribution import Average
from distqat.averaging.group import Group
from distqat.averaging.merging import carry
from distqat.averaging.outer import OuterState
from distqat.errors import RoundError, StateError
from distqat.ids import Endpoint
from distqat.rpc.local import Network, VirtualTimeLoop
from distqat.sections import SyncSection
from tests.averaging.swarm import Node, Swarm
from tests.sim.gate import Gate
from tests.support import until

LEASE = 3.0
SECONDS = 4.0
"""Of faults; no silence lasts for so long that somebody is taken for dead who is not (3 x `max_wait`)."""
MAX_WAIT = 4.0


@dataclass(frozen=True)
class Plan:
    """What may happen in a run."""

    sizes: tuple[int, int] = (2, 7)
    crashes: bool = True
    stops: bool = False
    cuts: bool = False
    loss: float = 0.0
    duplicate: float = 0.0
    is_founded_first: bool = True
    """The first round is committed by all before anything happens: only then there is somebody to decide."""


class World:
    """One seeded run."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.random = random.Random(seed)
        self.plan = plan
        delay = self.random.choice([0.0, 0.002, 0.02, 0.1])
        self.network = Network(seed, delay=delay, jitter=3 * delay)
        fragments = self.random.choice([1, 1, 2, 3])
        self.sync = SyncSection(
            warmup_steps=self.random.choice([0, 3]),
            inner_steps=4,
            fragments=fragments,
            max_wait=MAX_WAIT,
            codec=self.random.choice(["none", "none", "int8", "int2"]),
            clip=self.random.choice([0.0, 1.5]),
            kept_rounds=self.random.choice([0, 4]),
        )
        self.swarm = Swarm(self.network, self.sync, parameters=12, buffers=2)
        self.swarm.fragments = fragments
        self.names = [f"peer{index:02}" for index in range(self.random.randint(*plan.sizes))]
        self.gates: dict[str, Gate] = {}
        self.lives: dict[str, asyncio.Task[None]] = {}  # The incarnation of each name that lives now.
        self.brought: dict[tuple[str, int, int], list[torch.Tensor]] = defaultdict(list)  # By name, round, samples.
        self.contributors: dict[int, set[Endpoint]] = defaultdict(set)  # The lives whose contributions are in a round.
        self.digests: dict[int, list[tuple[Node, str]]] = defaultdict(list)  # What each has committed, by round.
        self.faults: list[str] = []
        self.num_commits = self.num_failures = 0
        self.is_over = False  # Faults have ended.

    @property
    def live(self) -> list[Node]:
        """Those that have not crashed and have state."""
        return [node for node in self.swarm.nodes.values() if not node.has_crashed and node.sibling.ready]

    async def run(self) -> None:
        """Found, let things happen, and see that all agree and go on."""
        async with asyncio.TaskGroup() as group:
            for name in self.names:
                self.lives[name] = group.create_task(self._live(name, is_founder=True))
            await asyncio.sleep(0)
            if self.plan.is_founded_first:
                await until(lambda: all(node.sibling.round > 0 for node in self.live), timeout=60.0, pause=0.05)
            self.network.loss, self.network.duplicate = self.plan.loss, self.plan.duplicate
            await self._befall(group)
            self._heal()
            await self._agree()
            for task in self.lives.values():
                task.cancel()

    # What happens.

    async def _befall(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        kinds: list[Callable[[asyncio.TaskGroup], None]] = []
        kinds += [self._crash, self._ambush] if self.plan.crashes else []
        kinds += [self._stop] if self.plan.stops else []
        kinds += [self._cut, self._cut] if self.plan.cuts else []
        while loop.time() < end:
            await asyncio.sleep(self.random.uniform(0.1, 1.5))
            if kinds and self.live:
                self.random.choice(kinds)(group)
        if self.plan.crashes and not self.faults and len(self.live) > 1:
            self.kill(self.random.choice(self.live), group)  # Nobody came by where it was waited for.

    def _crash(self, group: asyncio.TaskGroup) -> None:
        if len(self.live) > 1:
            self.kill(self.random.choice(self.live), group)

    def _ambush(self, group: asyncio.TaskGroup) -> None:
        """It dies, or is stopped, at one of its next messages."""
        victim = self.random.choice(self.live)
        gate = self.gates[victim.peer]
        left = itertools.count(self.random.randint(1, 20), -1)

        async def strike(what: str) -> None:
            if next(left) == 0 and not victim.has_crashed and not self.is_over:
                if self.plan.stops and self.random.random() < 0.5:
                    self._pause(victim, group)
                    await gate.passes(what)
                elif len(self.live) > 1:
                    self.kill(victim, group)
                    await asyncio.sleep(0)

        gate.hook = strike

    def _stop(self, group: asyncio.TaskGroup) -> None:
        self._pause(self.random.choice(self.live), group)

    def _pause(self, victim: Node, group: asyncio.TaskGroup) -> None:
        gate, seconds = self.gates[victim.peer], self.random.uniform(0.1, 5.0)
        self.faults.append(f"stop {victim.peer}")
        gate.stop()
        group.create_task(self._resume(victim, gate, seconds))

    async def _resume(self, victim: Node, gate: Gate, seconds: float) -> None:
        await asyncio.sleep(min(seconds, LEASE))
        if seconds > LEASE and not victim.has_crashed:
            victim.is_live = False
            await asyncio.sleep(seconds - LEASE)
            victim.is_live = not victim.has_crashed
        gate.go_on()

    def _cut(self, group: asyncio.TaskGroup) -> None:
        """For a while no packet passes between two sides, or only one way; the directory notices after a while."""
        side = {name for name in self.names if self.random.random() < 0.4}
        other = set(self.names) - side
        if side and other:
            group.create_task(self._part(side, other))

    async def _part(self, side: Collection[str], other: Collection[str]) -> None:
        self.faults.append(f"cut {' '.join(sorted(side))}")
        self.network.partition(side, other, one_way=self.random.random() < 0.4)
        seconds = self.random.uniform(0.1, 5.0)
        await asyncio.sleep(min(seconds, LEASE))
        if seconds > LEASE:
            self.swarm.hidden = {pair for a in side for b in other for pair in ((a, b), (b, a))}
            await asyncio.sleep(seconds - LEASE)
        self.network.heal()
        self.swarm.hidden.clear()

    def kill(self, victim: Node, group: asyncio.TaskGroup) -> None:
        """It dies; later the directory learns of it, and it comes back."""
        self.faults.append(f"kill {victim.peer}")
        self.swarm.crash(victim)
        self.gates[victim.peer].go_on()
        self.lives[victim.peer].cancel()
        group.create_task(self._bury(victim))
        group.create_task(self._return(victim.peer, group))

    async def _bury(self, node: Node) -> None:
        await asyncio.sleep(LEASE)
        node.is_live = False

    async def _return(self, name: str, group: asyncio.TaskGroup) -> None:
        await asyncio.sleep(self.random.uniform(0.1, 5.0))
        self.lives[name] = group.create_task(self._live(name, is_founder=False))

    def _heal(self) -> None:
        self.is_over = True
        self.network.loss = self.network.duplicate = 0.0
        self.network.heal()
        self.swarm.hidden.clear()

    # What siblings do.

    async def _live(self, name: str, is_founder: bool) -> None:
        """One incarnation of a sibling: found or catch up, then train."""
        async with AsyncExitStack() as stack:
            gate = self.gates[name] = Gate(self.network.transport(name))
            node = await stack.enter_async_context(self.swarm.node(name, gate))
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
        averager, steps = node.averager, 0
        assert averager.outer is not None
        seconds = self.random.choice([0.1, 0.25, 0.5])
        local, samples = averager.outer.anchor.clone(), 0
        while True:
            if self.random.random() < 0.1:
                # Nothing to do for a while: it comes only if it is invited.
                with suppress(TimeoutError):
                    async with asyncio.timeout(3.0):
                        await averager.wait_invited()
            else:
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * seconds)
                local, samples = local + self._drift(), samples + self.random.randint(1, 9)
                steps += 1
            if averager.is_due(steps):
                outcome = await self._synchronise(node, local, samples)
                steps = 0
                if outcome is not None and outcome.is_replayed:
                    self._check_carried(node, outcome)
                    everything = range(len(outcome.state.parts))
                    local = carry(local, outcome.before, outcome.state, everything)
                elif outcome is not None:
                    local, samples = outcome.state.anchor.clone(), 0

    def _drift(self) -> torch.Tensor:
        draw = torch.Generator().manual_seed(self.random.getrandbits(30))
        return torch.randn(self.swarm.elements, generator=draw)

    async def _synchronise(self, node: Node, local: torch.Tensor, samples: int) -> Outcome | None:
        averager = node.averager
        before, how = averager.outer, averager.phase
        assert before is not None
        assert how is not None
        part = torch.cat([self.swarm.pieces(local)[index] for index in how.fragments])
        if samples:
            self.brought[node.peer, before.round, samples].append(part)
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome = None
        try:
            outcome = await averager.synchronise(part, samples)
        except RoundError:
            self.num_failures += 1
            assert averager.outer is before, "a call that fails changes nothing"
        assert loop.time() - began <= averager.context.waits.total + 1e-6
        return outcome

    # What is checked.

    def _observe(self, node: Node) -> None:
        finish = node.averager.pursuit._finish_round

        def observed(state: OuterState, group: Group, average: Average | None) -> None:
            self._check(node, state, group, average)
            finish(state, group, average)

        node.averager.pursuit._finish_round = observed  # type: ignore[method-assign]

    def _check(self, node: Node, state: OuterState, group: Group, average: Average | None) -> None:
        number = state.round - 1
        assert group.samples > 0
        assert all(other.round != number for other in node.averager.receipts), "one round, two results"
        self.num_commits += 1
        self.contributors[number] |= {member.endpoint for member in group.contributors}
        for other, digest in self.digests[number]:
            said = f"{node} and {other} differ on round {number} after {self.faults}"
            assert other.has_crashed or digest == state.digest, said
        self.digests[number].append((node, state.digest))
        if average is not None:
            self._check_average(node, group, average)

    def _check_carried(self, node: Node, outcome: Outcome) -> None:
        """What is carried over is in none of the rounds that were missed."""
        for number in range(outcome.before.round, outcome.state.round):
            assert node.averager.context.endpoint not in self.contributors[number], f"{node} counts twice in {number}"

    def _check_average(self, node: Node, group: Group, average: Average) -> None:
        """Against what the contributors brought, averaged in the plainest way."""
        before = node.averager.outer
        assert before is not None
        how = node.averager.context.phase(before.round)
        anchor = torch.cat([before.parts[index].anchor for index in how.fragments]).double()
        brought = [self.brought[one.peer, before.round, one.samples] for one in group.contributors]
        assert all(brought), "a contribution that nobody has made"
        peers = [one.peer for one in group.contributors]
        assert len(set(peers)) == len(peers), "somebody counts twice"
        closest = math.inf
        for parts in itertools.product(*(some[-3:] for some in brought)):
            naive = torch.zeros_like(anchor)
            for one, part in zip(group.contributors, parts, strict=True):
                naive += (anchor - part.double()) * (one.samples / group.samples) * one.factor
            moved = self._moved(before, average, how.is_plain, how.fragments, anchor)
            closest = min(closest, float((moved - naive).abs().max()))
        # With int2, what was lost in earlier rounds is in it too.
        if self.sync.codec == "none" and all(one.factor == 1.0 for one in group.contributors):
            assert closest < 1e-4, f"{node} commits another average than its contributors', by {closest}"

    def _moved(
        self, before: OuterState, average: Average, is_plain: bool, fragments: Collection[int], anchor: torch.Tensor
    ) -> torch.Tensor:
        """The average as a difference to the anchor, also of what travels as it is."""
        mean = average.vector.double()
        begin = 0
        for index in fragments:
            shape = before.parts[index].shape
            end = begin + shape.num_elements
            first = begin if is_plain else begin + shape.num_parameters
            if average.codec == "none":
                mean[first:end] = anchor[first:end] - mean[first:end]
            begin = end
        return mean

    async def _agree(self) -> None:
        """Everyone comes back, and before long all hold the same, and more than before."""
        most = max((node.sibling.round for node in self.live), default=0)

        def is_done() -> bool:
            live = self.live
            rounds = {node.sibling.round for node in live}
            return len(live) == len(self.names) and len({node.digest for node in live}) == 1 and min(rounds) > most

        try:
            await until(is_done, timeout=60.0, pause=0.1)
        except TimeoutError:
            raise AssertionError(
                f"no agreement after {self.faults}: {[(node, node.averager, node.is_live) for node in self.live]}"
            ) from None


def simulate(seed: int, plan: Plan) -> World:
    """Run it to its end."""
    torch.set_num_threads(1)
    world = World(seed, plan)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(world.run())
    return world
