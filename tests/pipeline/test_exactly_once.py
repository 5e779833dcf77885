"""Wherever the stream is cut: every step is applied once by every stage, bit for bit."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from distqat.errors import RouteError
from distqat.ids import PipelineId
from distqat.pipeline.link import Link
from distqat.pipeline.route import HopError
from tests.pipeline.cuts import Cut, Direction
from tests.pipeline.swarm import TINY, Swarm, open_swarm, run_plain, train, train_whole
from tests.support import run

STEPS = 3
HOPS = ("trainer", "expert0")


@cache
def oracle(steps: int = STEPS) -> torch.Tensor:
    whole = TINY.whole()
    train_whole(whole, TINY, range(1, steps + 1), 2)
    return whole.flatten()


async def train_through(swarm: Swarm, steps: int) -> int:
    """What a trainer does: train until all steps are committed, with a new route after every break. The breaks."""
    known = breaks = 0
    while True:
        link: Link | None = None
        try:
            async with swarm.open(known) as link:
                if link.step < steps:
                    await train(link, TINY, range(link.step + 1, steps + 1), 2)
                    known = link.step
                else:
                    break
        except RouteError:
            breaks += 1
            known = max(known, link.step if link is not None else 0)
    return breaks


async def cut_and_train(cut: Cut, steps: int = STEPS) -> tuple[int, torch.Tensor, list[list[tuple[int, int]]]]:
    async with open_swarm(TINY, 2, wrap=cut.wrap) as swarm:
        breaks = await train_through(swarm, steps)
    return breaks, swarm.flat(), [expert.steps for expert in swarm.experts]


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("caller", HOPS)
def test_a_cut_at_any_message_loses_nothing_and_counts_nothing_twice(caller: str, direction: Direction) -> None:
    async def scenario() -> None:
        whole = Cut(caller, direction, 0)
        await cut_and_train(whole)
        # The second route only looks whether all is done: its messages are not of interest.
        numbers = whole.seen[direction] - 1
        assert numbers >= STEPS * 2
        total = 0
        for number in range(1, numbers + 1):
            breaks, flat, steps = await cut_and_train(Cut(caller, direction, number))
            assert torch.equal(flat, oracle()), f"cut {direction} at {number} below {caller}"
            assert steps == [[(step, 4) for step in range(1, STEPS + 1)]] * 2, f"cut {direction} at {number}"
            total += breaks
        # Only a cut while the route closes is no break.
        assert total >= numbers - 2

    run_plain(scenario())


class CutOften(Cut):
    """Cuts again and again, at messages drawn from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__("", "down", 0)
        self.random = random.Random(seed)

    def passes(self, direction: Direction) -> bool:
        self.seen[direction] += 1
        return self.random.random() > 0.04

    def wrap(self, transport, name):  # type: ignore[no-untyped-def]  # As the base does, for every caller.
        self.caller = name
        return super().wrap(transport, name)


@pytest.mark.parametrize("seed", range(4))
def test_cut_again_and_again(seed: int) -> None:
    breaks, flat, steps = run_plain(cut_and_train(CutOften(seed), 8))
    assert breaks >= 2
    assert torch.equal(flat, oracle(8))
    assert steps == [[(step, 4) for step in range(1, 9)]] * 2


def test_a_route_goes_on_where_the_last_one_ended() -> None:
    async def scenario() -> torch.Tensor:
        async with open_swarm(TINY, 2) as swarm:
            async with swarm.open() as link:
                await train(link, TINY, [1], 2)
            async with swarm.open(1) as link:
                await train(link, TINY, [2, 3], 2)
        return swarm.flat()

    assert torch.equal(run(scenario()), oracle())


def test_a_trainer_that_missed_a_commit_learns_of_it() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            async with swarm.open() as link:
                await train(link, TINY, [1, 2], 2)
            async with swarm.open(1) as link:
                assert link.step == 2
                await train(link, TINY, [3], 2)
        assert torch.equal(swarm.flat(), oracle())

    run(scenario())


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("known", [1, 2])
def test_a_newcomer_adopts_what_the_others_have(place: int, known: int) -> None:
    """Also when only a stage below knows of the last commit."""

    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            async with swarm.open() as link:
                await train(link, TINY, [1, 2], 2)
            newcomer = TINY.stage(place, 2)
            newcomer.load_flat(swarm.experts[place].stage.flatten())
            swarm.experts[place].stage = newcomer
            async with swarm.open(known) as link:
                assert link.step == 2
                assert newcomer.version == 2
                await train(link, TINY, [3], 2)
                assert link.step == 3

    run(scenario())


@pytest.mark.parametrize("known", [0, 4])
def test_steps_that_do_not_meet_are_refused_with_both_numbers(known: int) -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            async with swarm.open() as link:
                await train(link, TINY, [1, 2], 2)
            with pytest.raises(HopError, match=f"route is at step {known}, the stage has committed step 2") as caught:
                async with swarm.open(known):
                    pass
            assert caught.value.kind == "StaleError"
            assert caught.value.peer == "expert0"

    run(scenario())


def test_another_pipeline_counts_its_own_steps() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            async with swarm.open() as link:
                await train(link, TINY, [1, 2], 2)
            async with swarm.open(0, swarm.route(1, PipelineId("p1"))) as link:
                assert link.step == 0
                await train(link, TINY, [1], 2)
        assert [expert.steps for expert in swarm.experts] == [[(1, 4), (2, 4), (1, 4)]] * 2

    run(scenario())
