"""Transcripts of unequal length on their way: what pads them passes every hop. And the warm-up, which is the step's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from distqat.model.shapes import DataShape
from distqat.model.terms import Terms
from distqat.sections import OptimizerSection
from distqat.wire_sections import WireSection
from tests.model.zoo.oracle import SPEECH
from tests.pipeline.swarm import MLP, Recipe, Tensors, add_up, open_swarm, progress_of, run_plain, train, train_whole

STEPS = range(1, 4)


class Speech(Recipe):
    """Sound of two lengths, with transcripts of one to five characters."""

    def batch(self, step: int) -> Tensors:
        numbers = torch.Generator().manual_seed(step)
        inputs = torch.randn((self.samples, *self.shape.inputs), generator=numbers)
        inputs[::2, 400:] = 0.0
        labels = torch.randint(1, self.shape.classes, (self.samples, 5), generator=numbers)
        lengths = torch.randint(1, 6, (self.samples, 1), generator=numbers)
        return {"inputs": inputs, "labels": torch.where(torch.arange(5) < lengths, labels, -1)}


OPTIONS: dict[str, Any] = {
    **SPEECH,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_hidden_layers": 1,
}

SOUND = Speech(
    "wav2vec2-large-lv60",
    DataShape("audio", (600,), 12),
    "speech",
    OPTIONS,
)


@pytest.mark.parametrize("wire", [WireSection(), WireSection(compression="on")], ids=["plain", "compressed"])
def test_a_pipeline_learns_transcripts_as_one_process_does(wire: WireSection) -> None:
    recipe = replace(SOUND, wire=wire)

    async def scenario() -> tuple[list[dict[str, float]], dict[str, float], torch.Tensor]:
        async with open_swarm(recipe, 3) as swarm, swarm.open() as link:
            sums = await train(link, recipe, STEPS, 4)
            return sums, await link.evaluate(recipe.batch(9), 4), swarm.flat()

    sums, evaluation, flat = run_plain(scenario())
    whole = recipe.whole()
    assert train_whole(whole, recipe, STEPS, 4) == sums
    assert torch.equal(whole.flatten(), flat)
    labels = recipe.batch(9)["labels"]
    assert evaluation["characters"] == float((labels != -1).sum())
    assert evaluation["samples"] == recipe.samples


def test_the_warm_up_of_a_step_is_the_trainers() -> None:
    recipe = replace(MLP, optimizer=OptimizerSection(name="sgd", learning_rate=0.1, warmup_steps=10))

    async def scenario(warmup: float) -> torch.Tensor:
        async with open_swarm(recipe, 2) as swarm, swarm.open() as link:
            await link.submit(1, recipe.batch(1), 4, progress_of(1), warmup=warmup)
            await link.result(1)
            await link.settle()
            return swarm.flat()

    for warmup in (0.0, 0.25):
        flat = run_plain(scenario(warmup))
        whole = recipe.whole()
        add_up(whole, 1, recipe.batch(1), 4)
        whole.commit(1, Terms(progress_of(1), 1.0, warmup))
        assert torch.equal(whole.flatten(), flat)
    assert not torch.equal(run_plain(scenario(0.0)), flat)
