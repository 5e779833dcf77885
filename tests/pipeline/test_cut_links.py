"""Exactly once over real connections: cut at bytes that nobody chose, in the middle of frames and of messages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from distqat.aio import Backoff
from distqat.pipeline.route import HopError, Limits, patience
from tests.pipeline.courses import Course, states_of, train_through
from tests.pipeline.links import open_linked
from tests.pipeline.swarm import IMAGES, LIMITS, Recipe, peer, run_plain
from tests.proxy import Cut, Direction

WIDE = Course(
    "tensors of 1.3 MB", Recipe("mlp", IMAGES, "cv", {"hidden": 640, "depth": 2}, samples=1024), microbatches=2, steps=2
)
SMALL = Course("small tensors")

Traffic = dict[Direction, int]


@dataclass(frozen=True)
class Harm:
    """A cut of the link to a stage, at a part of the bytes that pass there in a course without cuts."""

    stage: int
    direction: Direction
    part: float
    how: Cut = Cut.RESET

    def __str__(self) -> str:
        return f"{self.how.value} of the link to stage {self.stage}, {self.direction} at {self.part:.1%}"


@dataclass(frozen=True)
class Ride:
    """What a course over links has come to."""

    states: Sequence[torch.Tensor]
    counts: Sequence[Sequence[tuple[int, int]]]
    traffic: Sequence[Traffic]
    """Bytes on the link to each stage."""
    errors: Sequence[HopError]
    noticed: Sequence[float]
    """Seconds from the last cut before each error until the trainer knew."""


async def ride(course: Course, harms: Sequence[Harm], traffic: Sequence[Traffic], limits: Limits) -> Ride:
    errors: list[HopError] = []
    noticed: list[float] = []
    backoff = Backoff(0.05, 1.0)

    async def broken(known: int, breaks: int, error: HopError) -> None:
        errors.append(error)
        last = max(link.statistics().last_cut for link in linked.links)
        noticed.append(asyncio.get_running_loop().time() - last)
        for link in linked.links:
            link.heal()
        await asyncio.sleep(backoff.next())  # gRPC gives a connection that failed a rest of 0.1 to 1 s.

    async with open_linked(course, limits) as linked:
        for harm in harms:
            at = max(1, int(traffic[harm.stage][harm.direction] * harm.part))
            linked.links[harm.stage].cut_at(at, harm.direction, harm.how)
        await train_through(course, linked.swarm, broken)
        found = [link.statistics() for link in linked.links]
        assert sum(one.cuts for one in found) == len(harms), f"{', '.join(map(str, harms))}: not all came"
        counts = [expert.steps for expert in linked.swarm.experts]
        passed: list[Traffic] = [{"down": one.down, "up": one.up} for one in found]
        return Ride(states_of(linked.swarm), counts, passed, errors, noticed)


WHOLE: dict[str, Ride] = {}
"""Rides without cuts, by course."""


def check(course: Course, harms: Sequence[Harm], limits: Limits = LIMITS) -> Ride:
    """Whatever is cut, the numbers and the counts are those of the ride without cuts."""
    if course.name not in WHOLE:
        WHOLE[course.name] = run_plain(ride(course, [], [], LIMITS))
    whole = WHOLE[course.name]
    found = run_plain(ride(course, harms, whole.traffic, limits))
    name = ", ".join(map(str, harms))
    assert not whole.errors
    assert all(torch.equal(mine, its) for mine, its in zip(found.states, whole.states, strict=True)), name
    samples = course.recipe.samples
    counts = [[(step, samples) for step in range(1, course.steps + 1)]] * course.stages
    assert found.counts == whole.counts == counts, name
    return found


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_reset_loses_nothing_and_counts_nothing_twice(stage: int, direction: Direction) -> None:
    part = random.Random(f"{stage} {direction}").uniform(0.05, 0.9)
    found = check(WIDE, [Harm(stage, direction, part)])
    assert found.errors
    assert max(found.noticed) < 2.0


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_link_that_falls_silent_is_noticed_within_the_stall_and_named(stage: int) -> None:
    limits = replace(LIMITS, stall=1.0)
    found = check(SMALL, [Harm(stage, "down", 0.6, Cut.SILENCE)], limits)
    (error,) = found.errors
    assert (error.kind, error.peer) == ("DeadlineError", peer(stage))
    assert found.noticed[0] < patience(limits.stall, 3, stage) + 1.0


def test_two_links_at_once_and_one_more_while_the_route_opens_again() -> None:
    found = check(WIDE, [Harm(1, "down", 0.3), Harm(2, "up", 0.3), Harm(1, "down", 0.3001), Harm(0, "up", 0.5)])
    assert len(found.errors) >= 2


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(200))
def test_cuts_at_random(seed: int) -> None:
    numbers = random.Random(seed)
    directions: list[Direction] = ["down", "up"]
    check(
        numbers.choice([SMALL, WIDE]),
        [
            Harm(numbers.randrange(3), numbers.choice(directions), numbers.uniform(0.0, 0.95))
            for _ in range(numbers.randint(1, 4))
        ],
    )
