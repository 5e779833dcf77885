"""A pipeline gives the numbers of one process, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distqat.pipeline.route import Limits
from distqat.rpc.local import Network
from tests.pipeline.swarm import (
    GPT,
    LIMITS,
    MLP,
    RESNET,
    Recipe,
    open_swarm,
    run_plain,
    train,
    train_step,
    train_whole,
)

STEPS = range(1, 21)


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("recipe", [MLP, RESNET, GPT], ids=lambda recipe: recipe.model)
def test_a_pipeline_equals_one_process_bit_for_bit(recipe: Recipe, stages: int) -> None:
    async def scenario() -> tuple[list[dict[str, float]], torch.Tensor]:
        async with open_swarm(recipe, stages) as swarm, swarm.open() as link:
            sums = await train(link, recipe, STEPS, 4)
            assert link.step == len(STEPS)
        assert [expert.steps for expert in swarm.experts] == [[(step, recipe.samples) for step in STEPS]] * stages
        return sums, swarm.flat()

    sums, flat = run_plain(scenario())
    whole = recipe.whole()
    before = whole.flatten()
    assert train_whole(whole, recipe, STEPS, 4) == sums
    assert torch.equal(whole.flatten(), flat)
    assert not torch.equal(before, flat)


@pytest.mark.parametrize("recipe", [MLP, GPT], ids=lambda recipe: recipe.model)
def test_microbatches_add_up_to_the_batch(recipe: Recipe) -> None:
    if recipe is GPT:
        # Dropout is drawn for each microbatch, so only without it can the two be equal.
        recipe = Recipe(GPT.model, GPT.shape, GPT.task, {**GPT.options, "dropout": 0.0})

    async def scenario() -> torch.Tensor:
        async with open_swarm(recipe, 2) as swarm, swarm.open() as link:
            await train(link, recipe, [1, 2, 3], 3)
        return swarm.flat()

    whole = recipe.whole()
    for step in (1, 2, 3):
        train_step(whole, step, recipe.batch(step), 1)
    torch.testing.assert_close(run_plain(scenario()), whole.flatten(), rtol=1e-3, atol=1e-4)


def test_an_evaluation_between_steps_changes_nothing() -> None:
    async def scenario(evaluate: bool) -> tuple[torch.Tensor, list[dict[str, float]]]:
        found = []
        async with open_swarm(RESNET, 3) as swarm, swarm.open() as link:
            for step in range(1, 5):
                await link.train(step, RESNET.batch(step), 4)
                if evaluate:
                    found += [await link.evaluate(RESNET.batch(99), count) for count in (2, 5)]
        return swarm.flat(), found

    plain, _ = run_plain(scenario(False))
    evaluated, found = run_plain(scenario(True))
    assert torch.equal(plain, evaluated)
    assert len(found) == 8
    # The same numbers whatever the microbatches, and others after each step.
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] != pytest.approx(found[2], rel=1e-5)
    assert found[0]["samples"] == RESNET.samples


def test_how_many_are_in_flight_changes_no_number() -> None:
    async def scenario(limits: Limits, network: Network) -> torch.Tensor:
        async with open_swarm(GPT, 3, limits, network) as swarm, swarm.open() as link:
            await train(link, GPT, [1, 2, 3], 8)
        return swarm.flat()

    whole = GPT.whole()
    train_whole(whole, GPT, [1, 2, 3], 8)
    for limits, network in (
        (replace(LIMITS, max_in_flight=1), Network()),
        (replace(LIMITS, ping=0.01), Network(delay=0.01)),
    ):
        assert torch.equal(run_plain(scenario(limits, network)), whole.flatten())


def test_a_route_of_one_stage_is_a_pipeline_too() -> None:
    async def scenario() -> torch.Tensor:
        async with open_swarm(MLP, 1) as swarm, swarm.open() as link:
            await train(link, MLP, [1, 2, 3], 4)
        return swarm.flat()

    whole = MLP.whole()
    train_whole(whole, MLP, [1, 2, 3], 4)
    assert torch.equal(run_plain(scenario()), whole.flatten())


def test_large_tensors_cross_in_chunks() -> None:
    recipe = Recipe("mlp", MLP.shape, "cv", {"hidden": 4096, "depth": 1}, samples=128)

    async def scenario() -> torch.Tensor:
        async with open_swarm(recipe, 2) as swarm, swarm.open() as link:
            await link.train(1, recipe.batch(1), 1)
        return swarm.flat()

    whole = recipe.whole()
    train_step(whole, 1, recipe.batch(1), 1)
    assert torch.equal(run_plain(scenario()), whole.flatten())
