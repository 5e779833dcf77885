"""Credits that follow measured latency: steps as long as the formula of the bubble says, however slow the links are.

In virtual time, with real workers, links and hops. With M microbatches, S stages that take t each and one-way latencies
l between them, no schedule that begins a step after the commit of the one before is faster than

    (M + S - 1) t + 2 * (sum of l over the S - 1 links between stages)

The first term is the bubble of 1F1B; the second is the latency of filling and draining, which no bound can hide. The
trainer's own link is hidden altogether: the next step waits at stage 0 before it may begin.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from distqat.model.device import Priority
from distqat.pipeline import pace
from distqat.pipeline.link import Link
from distqat.pipeline.schedule import Statistics
from distqat.rpc.local import Network
from tests.pipeline.swarm import LIMITS, TINY, Recipe, Swarm
from tests.pipeline.timed import COMPUTE, open_timed
from tests.support import run_virtual

STAGES = 4
DEEP = replace(TINY, options={"hidden": 4, "depth": 4}, samples=128)


def formula(count: int, latency: float, stages: int = STAGES) -> float:
    return (count + stages - 1) * COMPUTE + 2 * (stages - 1) * latency


@dataclass
class Outcome:
    """What was measured."""

    seconds: list[float]
    """From commit to commit, as the trainer sees it; the first from the opening on."""
    statistics: list[Statistics]
    """Of the stages, at the end."""
    credit: int
    """Of the trainer."""


async def measure(swarm: Swarm, link: Link, recipe: Recipe, count: int, steps: int) -> Outcome:
    loop = asyncio.get_running_loop()
    times = [loop.time()]

    async def submit() -> None:
        for step in range(1, steps + 1):
            await link.submit(step, recipe.batch(step), count)

    async with asyncio.TaskGroup() as group:
        group.create_task(submit())
        await asyncio.sleep(0)
        for step in range(1, steps + 1):
            await link.result(step)
            times.append(loop.time())
    workers = [service.worker for service in swarm.services]
    found = [worker.statistics() for worker in workers if worker is not None]
    return Outcome([end - begin for begin, end in pairwise(times)], found, link.pace().bound)


def simulate(latency: float, count: int = 128, steps: int = 2, most: int = 64) -> Outcome:
    async def scenario() -> Outcome:
        network = Network(delay=latency)
        limits = replace(LIMITS, max_in_flight=most)
        async with open_timed(DEEP, STAGES, network, limits) as (swarm, _), swarm.open() as link:
            return await measure(swarm, link, DEEP, count, steps)

    return run_virtual(scenario(), debug=False)


@pytest.mark.parametrize(("share", "count"), [(0.0, 32), (0.17, 128), (0.5, 32), (1.0, 128)])
def test_a_step_takes_what_the_formula_says(share: float, count: int) -> None:
    latency = share * COMPUTE
    outcome = simulate(latency, count)
    assert formula(count, latency) * 0.999 <= outcome.seconds[1] <= formula(count, latency) * 1.01
    if count == 128:
        # The bubble of 1F1B alone, with nothing added for the latency: still within 5 %.
        assert outcome.seconds[1] <= formula(count, 0.0) * 1.05
    bounds = [state.bound for state in outcome.statistics]
    assert bounds == [pace.in_flight_bound(STAGES, stage, (2 * latency,) * (3 - stage), COMPUTE) for stage in range(4)]
    for state in outcome.statistics:
        assert state.most_in_flight <= state.bound


def test_even_the_first_step_is_near_it() -> None:
    # Measured while it goes on: the first gradients are needed before anything is known.
    assert simulate(COMPUTE, 64, steps=1).seconds[0] <= formula(64, COMPUTE) * 1.15


def test_the_plain_bound_would_starve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmoved(num_stages: int, stage: int, *_: object) -> int:
        return num_stages - stage

    monkeypatch.setattr(pace, "in_flight_bound", unmoved)
    assert simulate(0.0, 32).seconds[1] <= formula(32, 0.0) * 1.01
    assert simulate(0.17 * COMPUTE, 32).seconds[1] > formula(32, 0.17 * COMPUTE) * 1.15
    assert simulate(COMPUTE, 32).seconds[1] > formula(32, COMPUTE) * 1.5


def test_the_cap_holds_and_costs_time_only() -> None:
    outcome = simulate(COMPUTE, count=32, most=5)
    assert all(state.most_in_flight <= 5 for state in outcome.statistics)
    assert outcome.credit == 5
    assert outcome.seconds[1] > formula(32, COMPUTE) * 1.3


def test_credits_grow_and_shrink_with_the_links() -> None:
    async def scenario() -> list[tuple[float, int, int]]:
        network = Network(delay=0.0)
        found = []
        async with open_timed(DEEP, STAGES, network) as (swarm, _), swarm.open() as link:
            for step, latency in enumerate((0.0, 0.0, COMPUTE, COMPUTE, 0.0, 0.0), 1):
                network.delay = latency
                result = await link.train(step, DEEP.batch(step), 32)
                worker = swarm.services[0].worker
                assert worker is not None
                found.append((result.seconds, worker.statistics().bound, link.pace().bound))
        return found

    found = run_virtual(scenario(), debug=False)
    assert found[1][1:] == (4, 5)
    assert found[3][1:] == (4 + 3 * 2, 5 + 4 * 2)
    assert found[5][1:] == (4, 5)
    # Alone on the route, so the trainer's link counts too: the first microbatch and the last answer.
    assert found[1][0] <= formula(32, 0.0) * 1.01
    assert found[3][0] <= (formula(32, COMPUTE) + 2 * COMPUTE) * 1.01


def test_measuring_does_not_disturb_the_end_of_a_route() -> None:
    async def scenario() -> None:
        limits = replace(LIMITS, ping=0.001)
        async with open_timed(DEEP, 3, Network(delay=0.05), limits) as (swarm, _):
            async with swarm.open() as link:
                await link.train(1, DEEP.batch(1), 4)
            assert [expert.stage.version for expert in swarm.experts] == [1, 1, 1]
            assert {reason for expert in swarm.experts for reason in expert.closings} == {
                "the trainer has closed the route"
            }

    run_virtual(scenario())


def test_work_that_takes_longer_than_the_stall_is_no_silence() -> None:
    async def scenario() -> float:
        limits = replace(LIMITS, stall=COMPUTE / 10, settle=COMPUTE)
        async with open_timed(DEEP, 2, Network(), limits) as (swarm, _), swarm.open() as link:
            return (await link.train(1, DEEP.batch(1), 4)).seconds

    assert run_virtual(scenario()) == pytest.approx(formula(4, 0.0, 2))


@pytest.mark.parametrize("latency", [0.0, 0.5])
def test_no_stage_is_idle_between_steps_but_for_the_bubble(latency: float) -> None:
    """The next step begins in stage 0 the moment the last one is committed there."""

    async def scenario() -> list[float]:
        async with open_timed(DEEP, 2, Network(delay=latency)) as (swarm, devices), swarm.open() as link:
            await measure(swarm, link, DEEP, 16, 4)
        kinds = [(Priority.BACKWARD, Priority.OTHER), (Priority.OTHER, Priority.FORWARD)]
        busy = devices[0].busy[2:]  # Without what it did to open the route.
        return [after[0] - before[1] for before, after in pairwise(busy) if (before[2], after[2]) in kinds]

    gaps = run_virtual(scenario(), debug=False)
    # From the last backward to the commit, four times, and on to the next forward, three times.
    assert len(gaps) == 7
    assert max(gaps) == pytest.approx(0.0, abs=1e-9)


def test_the_next_step_waits_decoded_at_stage_0_before_the_commit() -> None:
    async def scenario() -> list[int]:
        waiting = []
        async with open_timed(DEEP, 2, Network(delay=0.5)) as (swarm, _), swarm.open() as link:
            standing = swarm.services[0].standing
            apply = standing.apply

            def spied(*args: object) -> None:
                worker = swarm.services[0].worker
                assert worker is not None
                waiting.append(worker.statistics().waiting)
                apply(*args)  # type: ignore[arg-type]

            standing.apply = spied  # type: ignore[method-assign, assignment]
            await measure(swarm, link, DEEP, 16, 3)
        return waiting

    waiting = run_virtual(scenario(), debug=False)
    assert len(waiting) == 3
    # Of the first step's end nothing is known beforehand; the last one has no next.
    assert waiting[1] >= 2
    assert waiting[2] == 0
