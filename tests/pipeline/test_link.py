"""The trainer's end: what may be asked, what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch

from distqat.errors import DataError, StaleError
from distqat.pipeline.route import HopError
from tests.pipeline.swarm import LIMITS, MLP, TINY, Swarm, open_swarm, train
from tests.support import run, until


def test_results_say_what_became_of_a_step() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm, swarm.open() as link:
            assert repr(link) == "<Link p0 epoch 1 step 0, 0 under way>"
            result = await link.train(1, TINY.batch(1), 2)
            assert (result.step, link.step) == (1, 1)
            assert result.sums["samples"] == 4
            assert 0 < result.seconds < 5
            with pytest.raises(StaleError, match="nothing is known of step 1"):
                await link.result(1)
        assert "ended the stream" in repr(link)
        with pytest.raises(HopError):
            await link.train(2, TINY.batch(2), 2)

    run(scenario())


def test_the_next_step_is_taken_while_the_present_one_is_under_way() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm, swarm.open() as link:
            await link.submit(1, TINY.batch(1), 2)
            await link.submit(2, TINY.batch(2), 2)
            with pytest.raises(StaleError, match="step 4 was submitted where step 3 comes next"):
                await link.submit(4, TINY.batch(4), 2)
            assert (await link.result(2)).step == 2
            assert (await link.result(1)).step == 1

    run(scenario())


def test_a_batch_that_makes_no_sense_is_refused_at_once() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 1) as swarm, swarm.open() as link:
            with pytest.raises(DataError, match="'inputs'"):
                await link.train(1, {"labels": torch.zeros(4)}, 2)
            with pytest.raises(DataError, match="as many samples"):
                await link.train(1, {"inputs": torch.zeros(4, 1), "labels": torch.zeros(3)}, 2)
            await link.train(1, TINY.batch(1), 2)

    run(scenario())


def test_no_stage_has_more_in_flight_than_its_bound() -> None:
    async def scenario() -> None:
        # However slow the links are: at most two.
        limits = replace(LIMITS, max_in_flight=2)
        async with open_swarm(MLP, 3, limits) as swarm, swarm.open() as link:
            await train(link, MLP, [1, 2, 3], 8)
            assert link.pace().bound == 2
            workers = [service.worker for service in swarm.services]
            found = [worker.statistics() for worker in workers if worker is not None]
        assert [(state.bound, state.most_in_flight) for state in found] == [(2, 2), (2, 2), (1, 1)]

    run(scenario())


def test_all_stages_settle_at_the_same_time() -> None:
    async def scenario() -> None:
        together = asyncio.Barrier(3)

        @asynccontextmanager
        async def meet() -> AsyncIterator[None]:
            async with asyncio.timeout(5), together:
                yield

        async with open_swarm(TINY, 3) as swarm, swarm.open() as link:
            await link.train(1, TINY.batch(1), 2)
            # After this no commit is under way.
            await link.settle()
            for expert in swarm.experts:
                expert.round = meet
            await link.settle()
            assert [expert.settled for expert in swarm.experts] == [2, 2, 2]
            await link.settle()
            for expert in swarm.experts:
                expert.round = None
            await link.train(2, TINY.batch(2), 2)
        assert [expert.settled for expert in swarm.experts] == [3, 3, 3]

    run(scenario())


def test_all_stages_hear_after_which_steps_the_first_begins_a_round() -> None:
    async def main() -> None:
        async with open_swarm(TINY, 3) as swarm, swarm.open() as link:
            swarm.experts[0].rounds_after = {2, 4}
            # Whatever another stage thinks is its own affair.
            swarm.experts[1].rounds_after = {1, 2, 3, 4, 5}
            await train(link, TINY, range(1, 6), 2)
        assert [expert.orders for expert in swarm.experts] == [
            [None] * 5,
            [False, True, False, True, False],
            [False, True, False, True, False],
        ]

    run(main())


def test_a_stage_in_a_round_is_not_taken_for_dead() -> None:
    async def scenario() -> None:
        @asynccontextmanager
        async def long() -> AsyncIterator[None]:
            await asyncio.sleep(0.9)
            yield

        limits = replace(LIMITS, stall=0.6)
        async with open_swarm(TINY, 2, limits) as swarm, swarm.open() as link:
            await link.train(1, TINY.batch(1), 2)
            swarm.experts[1].round = long
            await link.train(2, TINY.batch(2), 2)
            await link.settle()
        assert swarm.experts[1].settled == 1

    run(scenario())


def test_the_seconds_that_a_step_was_worked_on_are_without_rounds() -> None:
    async def scenario() -> None:
        @asynccontextmanager
        async def long() -> AsyncIterator[None]:
            await asyncio.sleep(0.4)
            yield

        async with open_swarm(TINY, 2) as swarm, swarm.open() as link:
            for expert in swarm.experts:
                expert.round = long
            # The second step's first microbatch is sent before the round that follows the first step.
            await link.submit(1, TINY.batch(1), 2)
            await link.submit(2, TINY.batch(2), 2)
            result = await link.result(2)
            assert 0.0 < result.worked < result.seconds - 0.3

    run(scenario())


def test_a_round_that_never_ends_breaks_the_route_at_its_stage() -> None:
    async def scenario() -> None:
        @asynccontextmanager
        async def endless() -> AsyncIterator[None]:
            await asyncio.get_running_loop().create_future()
            yield

        limits = replace(LIMITS, stall=0.5, settle=0.3)
        async with open_swarm(TINY, 2, limits) as swarm:
            async with swarm.open() as link:
                await link.train(1, TINY.batch(1), 2)
                swarm.experts[1].round = endless
                with pytest.raises(HopError, match="no progress") as caught:
                    await link.settle()
            assert (caught.value.peer, caught.value.kind) == ("expert1", "DeadlineError")

    run(scenario())


def test_progress_is_told_to_the_host() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm, swarm.open() as link:
            await link.train(1, TINY.batch(1), 2)
            # Two forwards, two backwards and a commit; in the last stage loss and backward are one.
            await until(lambda: [expert.progress for expert in swarm.experts] == [5, 3])

    run(scenario())


def test_a_trainer_that_fails_leaves_its_own_error_and_a_free_expert() -> None:
    async def scenario() -> None:
        async def fail(swarm: Swarm) -> None:
            async with swarm.open() as link:
                await link.submit(1, TINY.batch(1), 2)
                raise ZeroDivisionError

        async with open_swarm(TINY, 2) as swarm:
            with pytest.raises(ZeroDivisionError):
                await fail(swarm)
            async with swarm.open() as link:
                await link.train(1, TINY.batch(1), 2)
            assert swarm.experts[0].closings[-1] == "the trainer has closed the route"

    run(scenario())
