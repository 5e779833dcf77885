"""Real connections that are slow: credits make up for the delay, and zstd pays where the rate is low."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from distqat.timeline import Timelines
from tests.pipeline.courses import Course
from tests.pipeline.links import open_linked
from tests.pipeline.swarm import IMAGES, LIMITS, TINY, Recipe, run_plain
from tests.proxy import Shape

# Real links are measured here: not beside other tests that take the processors.
pytestmark = pytest.mark.e2e

DELAY = 0.05
FAR = Shape(delay=DELAY)

MANY = 32


def many(most: int) -> Course:
    recipe = Recipe(TINY.model, TINY.shape, TINY.task, TINY.options, samples=MANY)
    return Course("far", recipe, microbatches=MANY, settings={"pipeline": {"max_in_flight": most}})


@dataclass(frozen=True)
class Measured:
    """A step over links with delay."""

    seconds: float
    """From the first microbatch to the commit, as the trainer sees it; of the best step (not the first)."""
    slowest: float
    """Of a microbatch, as the trainer has measured it at the slowest place."""
    most: list[int]
    """Microbatches in flight in each stage."""


async def measure(most: int, steps: int) -> Measured:
    course = many(most)
    async with open_linked(course, LIMITS, FAR) as linked, linked.swarm.open() as link:
        # The first one is under way before anything is known of the links.
        results = [await link.train(step, course.batch(step), MANY) for step in range(1, steps + 1)]
        workers = [service.worker for service in linked.swarm.services]
        found = [worker.statistics().most_in_flight for worker in workers if worker is not None]
        return Measured(min(result.seconds for result in results[1:] or results), link.pace().slowest, found)


def test_with_credits_that_know_of_the_delay_a_step_does_not_starve() -> None:
    async def scenario() -> tuple[Measured, Measured]:
        return await measure(64, steps=3), await measure(3, steps=1)

    free, starved = run_plain(scenario())
    # A stage may hold three, so three come back every round trip: of that link and of all below it.
    assert starved.most[0] == 3
    assert starved.seconds > MANY / 3 * 2 * 2 * DELAY
    assert min(free.most[:2]) > 3
    assert free.seconds < starved.seconds / 2
    # Filling and draining the links is all that is left of the delay; the rest is work, on cores that others share.
    assert free.seconds < 6 * DELAY + 3 * (MANY + 2) * max(free.slowest, 0.005)


def sparse(hidden: int, microbatches: int, steps: int = 3) -> Course:
    """Two stages; of the activations between them half are 0."""
    recipe = Recipe("mlp", IMAGES, "cv", {"hidden": hidden, "depth": 1}, samples=512)
    return Course(f"{512 // microbatches * hidden >> 8} KiB", recipe, stages=2, microbatches=microbatches, steps=steps)


LARGE = sparse(4096, 4)
"""Messages of 2 MiB."""

SMALL = sparse(1024, 8, steps=5)
"""Messages of 256 KiB, which disappear into the buffers of the sender, all of them."""


async def measure_hop(course: Course, shape: Shape | None) -> list[Mapping[str, float]]:
    """What stage 0 says of its hop in the metrics, step by step."""
    lines: list[Mapping[str, float]] = []

    def report(kind: str, labels: Mapping[str, str], values: Mapping[str, float]) -> None:
        if (kind, labels["stage"]) == ("hop", "mlp/0"):
            lines.append(values)

    async with open_linked(course, LIMITS, shape) as linked:
        linked.swarm.services[0].timelines = Timelines(time.monotonic, report)
        async with linked.swarm.open() as link:
            for step in range(1, course.steps + 1):
                await link.train(step, course.batch(step), course.microbatches)
    return lines


@pytest.mark.parametrize(("course", "rate"), [(LARGE, 8e6), (SMALL, 2e6)], ids=str)
def test_zstd_is_turned_on_for_sparse_activations_where_the_link_is_slow(course: Course, rate: float) -> None:
    lines = run_plain(measure_hop(course, Shape(rate=rate)))
    assert [line["compressed_down"] for line in lines[2:]] == [1.0] * (course.steps - 2)
    assert 0.8 * rate < lines[-1]["link_rate_down"] < 1.5 * rate
    assert lines[-1]["bytes"] < 0.8 * lines[-1]["raw"]


@pytest.mark.parametrize("course", [LARGE, SMALL], ids=str)
def test_zstd_stays_off_where_the_link_is_fast(course: Course) -> None:
    lines = run_plain(measure_hop(course, None))
    assert [line["compressed_down"] for line in lines] == [0.0] * course.steps
    assert lines[-1]["bytes"] == lines[-1]["raw"]
