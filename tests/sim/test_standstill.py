"""How long the others stand still when a sibling stops just before a round (SIGSTOP: it keeps its connections)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from distqat.averaging.rendezvous import order
from distqat.errors import RoundError
from distqat.ids import PeerId
from distqat.rpc.local import Network
from distqat.sections import SyncSection
from tests.averaging.swarm import Node, Swarm
from tests.averaging.words import round_ref
from tests.sim.rounds import LEASE
from tests.sim.test_rounds import run, started
from tests.support import until

pytestmark = pytest.mark.sim

STEP = 0.1
"""Seconds of one step."""

SYNC = SyncSection(warmup_steps=0, inner_steps=4, codec="none")
"""With the longest wait that is set by default, 10 s."""

NAMES = ("alice", "bob", "carol", "dave")
STRIKE = 8
"""Rounds that are committed before the stop."""


@dataclass(eq=False)
class Line:
    """One pipeline that trains on a sibling: a step, a step, a round."""

    node: Node
    stamps: list[float] = field(default_factory=list)  # When its steps were committed.

    async def train(self) -> None:
        averager, loop = self.node.averager, asyncio.get_running_loop()
        local, steps, samples = self.node.anchor.clone(), 0, 0
        while True:
            await asyncio.sleep(STEP)
            self.stamps.append(loop.time())
            local, steps, samples = local + 0.1, steps + 1, samples + 1
            if averager.is_due(steps):
                steps = 0
                with suppress(RoundError):
                    outcome = await averager.synchronise(local, samples)
                    if not outcome.is_replayed:
                        local, samples = self.node.anchor.clone(), 0

    def standstill(self, since: float) -> float:
        """Seconds of the longest pause between two steps, beside the step itself."""
        stamps = [stamp for stamp in self.stamps if stamp >= since - STEP]
        return max(b - a for a, b in itertools.pairwise(stamps)) - STEP


@dataclass(frozen=True)
class Course:
    """What became of the others."""

    longest: float
    """Standstill of a sibling that was not stopped, in seconds."""
    total: float
    """Of all standstills of one of them while the stopped one was away, the worst."""
    rounds: int
    """Committed while the stopped one was away."""


def stopped(size: int, victim: Callable[[list[PeerId]], PeerId], away: float = LEASE) -> Course:
    """Siblings train; one of them, by its place in the order of the next round, stops for longer than its lease: the
    directory has lost it after `away` seconds."""

    async def scenario() -> Course:
        async with started(NAMES[:size], Network(seed=1, delay=0.005), SYNC) as (swarm, nodes, gates):
            lines = [Line(node) for node in nodes.values()]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(line.train()) for line in lines]
                await until(lambda: rounds(swarm) == {STRIKE}, timeout=60.0, pause=0.01)
                dead = nodes[victim(order(round_ref(STRIKE), nodes))]
                others = [line for line in lines if line.node is not dead]
                gates[dead.peer].stop()
                began = asyncio.get_running_loop().time()
                await asyncio.sleep(away)
                ended = asyncio.get_running_loop().time()
                reached = max(line.node.sibling.round for line in others)
                dead.is_live = False
                await asyncio.sleep(1.0)
                gates[dead.peer].go_on()
                dead.is_live = True
                # All agree again before long, and the one that was away takes part again.
                await until(lambda: len(rounds(swarm)) == 1 and min(rounds(swarm)) > reached, timeout=30.0, pause=0.01)
                last = lines[0].node.averager.receipts
                await until(lambda: set(last[-1].contributors) == set(nodes), timeout=30.0, pause=0.01)
                for task in tasks:
                    task.cancel()
            steps = min(sum(began <= stamp < ended for stamp in line.stamps) for line in others)
            longest = max(line.standstill(began) for line in others)
            return Course(longest, away - steps * STEP, reached - STRIKE)

    return run(scenario())


def rounds(swarm: Swarm) -> set[int]:
    return {node.sibling.round for node in swarm.nodes.values()}


@pytest.mark.parametrize("size", [3, 4])
def test_the_leader_of_the_next_round_stops(size: int) -> None:
    course = stopped(size, lambda ranked: ranked[0])
    assert course.longest < 1.5
    assert course.rounds >= 2


@pytest.mark.parametrize("size", [3, 4])
def test_a_member_of_the_next_round_stops(size: int) -> None:
    course = stopped(size, lambda ranked: ranked[-1])
    assert course.longest < 1.5
    assert course.rounds >= 2


@pytest.mark.parametrize("place", [0, 1], ids=["leader", "member"])
def test_one_of_two_stops(place: int) -> None:
    """The other may not decide alone, or may: it trains on either way."""
    course = stopped(2, lambda ranked: ranked[place])
    assert course.longest < 1.5
    assert course.total < 1.8


def test_whoever_cannot_decide_alone_trains_on_as_if_alone() -> None:
    """Rounds that fail for want of the other cost nothing, once one has."""
    course = stopped(2, lambda ranked: ranked[0], away=20.0)
    assert course.rounds == 0
    assert course.total < 1.8
