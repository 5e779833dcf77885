"""What is trained, and that a peer trains the same."""

from __future__ import annotations

import pytest
import torch

from bench.case import Line
from bench.heavy import DISTILGPT2, line
from bench.peers import models
from bench.recipes import RECIPES, Recipe, least_bytes
from distqat.ids import MicrobatchId
from distqat.model.shapes import DataShape
from distqat.wire import tensors
from tests.support import run

TINY_GPT = Recipe("gpt", DataShape("tokens", (8,), 16), 4, (("width", 8), ("layers", 2), ("heads", 2)))
TINY_RESNET = Recipe("resnet", DataShape("image", (1, 8, 8), 10), 4)


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_peer_trains_stages_of_the_same_size(recipe: Recipe, stages: int) -> None:
    for index, (begin, end) in enumerate(recipe.blocks(stages)):
        theirs = models.build(recipe.described(), begin, end)
        assert sum(one.numel() for one in theirs.parameters()) == recipe.stage(index, stages).num_parameters


@pytest.mark.parametrize("recipe", [TINY_GPT, TINY_RESNET], ids=str)
def test_a_peer_passes_on_tensors_of_the_same_shape(recipe: Recipe) -> None:
    theirs, labels = models.batch(recipe.described())
    ours = recipe.batch()
    assert (theirs.shape, theirs.dtype) == (ours["inputs"].shape, ours["inputs"].dtype)
    assert labels.shape == ours["labels"].shape
    hidden = ours["inputs"]
    for index, (begin, end) in enumerate(recipe.blocks(2)):
        theirs = models.build(recipe.described(), begin, end)(theirs)
        hidden = recipe.stage(index, 2).forward(MicrobatchId(1, 0), hidden, train=False)
        assert theirs.shape == hidden.shape
    torch.autograd.backward(models.loss(theirs, labels))


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_the_least_bytes_are_those_of_the_tensors_alone(codec: str) -> None:
    batch = TINY_GPT.batch()
    hidden = TINY_GPT.stage(0, 2).forward(MicrobatchId(1, 0), batch["inputs"], train=False)
    _, payload = tensors.encode({"hidden": hidden}, codec)
    needed = batch["inputs"].nbytes + 2 * batch["labels"].nbytes + 2 * len(payload)
    assert least_bytes(TINY_GPT, 2, "int8" if codec == "int8" else "none") * TINY_GPT.samples == needed


def test_a_step_of_distilgpt2s_shape_is_small() -> None:
    async def measure() -> Line:
        return await line(quick=True)

    found = run(measure())
    assert found.ok
    assert found.goal == "value <= 13.5"
    elements = DISTILGPT2.samples * 1024 * 768
    assert found.value * 1e6 > 4 * elements, "two boundaries, both ways, a byte for each element"


def test_batches_are_always_the_same() -> None:
    first, second = TINY_RESNET.batch(), TINY_RESNET.batch()
    assert all(torch.equal(first[name], second[name]) for name in ("inputs", "labels"))
