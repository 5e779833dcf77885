"""Clipping by the norm over the whole model, whatever its cut."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distqat.errors import StaleError
from distqat.ids import MicrobatchId
from distqat.model import gradients
from tests.model import helpers

CLIP = 0.05


@pytest.mark.parametrize("model", helpers.MODELS)
def test_every_cut_clips_by_the_same_norm(model: str) -> None:
    shape = helpers.MODELS[model][0]
    ends = []
    for number in (1, 2, 3, 5):
        chain = helpers.stages(model, number, clip_norm=CLIP, learning_rate=0.05, name="sgd")
        drive = helpers.Drive(chain)
        losses = [drive.step(step, *helpers.batch(shape, step)) for step in range(1, 5)]
        ends.append((losses, drive.factors, helpers.tensors(chain)))
    assert all(0 < factor < 1 for factor in ends[0][1])
    for losses, factors, tensors in ends[1:]:
        assert losses == ends[0][0]
        assert factors == ends[0][1]
        assert all(torch.equal(tensors[name], ends[0][2][name]) for name in tensors)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_torch_clips_the_same(optimizer: str) -> None:
    """`torch.nn.utils.clip_grad_norm_` on the uncut model; its norm is fp32, ours fp64, so only nearly the same."""
    chain = helpers.stages("mlp", 3, clip_norm=CLIP, name=optimizer)
    (whole,) = helpers.stages("mlp", 1, name=optimizer)
    drive, oracle = helpers.Drive(chain), helpers.Drive([whole])
    for step in range(1, 9):
        inputs, labels = helpers.batch(helpers.IMAGES, step)
        drive.step(step, inputs, labels)
        oracle.compute(step, inputs, labels)
        norm = torch.nn.utils.clip_grad_norm_(whole.blocks.parameters(), CLIP)
        assert drive.factors[-1] == pytest.approx(CLIP / (float(norm) + 1e-6), rel=1e-6)
        whole.commit(step)
    for name, tensor in helpers.tensors(chain).items():
        torch.testing.assert_close(tensor, helpers.tensors([whole])[name], rtol=1e-5, atol=1e-6)


def test_squares_are_those_of_each_block() -> None:
    blocks = [nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)]
    for block in (blocks[0], blocks[2]):
        for parameter in block.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
    assert gradients.square_norms(blocks, ()) == pytest.approx((32.0, 0.0, 16.0))
    assert gradients.square_norms(blocks, (1,)) == pytest.approx((32.0, math.inf, 16.0))
    assert gradients.square_norms([nn.ReLU()], ()) == (0.0,)


def test_large_and_broken_gradients_are_told() -> None:
    block = nn.Linear(2, 1, bias=False)
    block.weight.grad = torch.tensor([[1e30, 1e30]])
    assert gradients.square_norms([block], ()) == pytest.approx((2e60,))
    block.weight.grad = torch.tensor([[1.0, math.inf]])
    assert gradients.square_norms([block], ()) == (math.inf,)
    block.weight.grad = torch.tensor([[1.0, math.nan]])
    assert math.isnan(gradients.square_norms([block], ())[0])


def test_norms_are_of_a_complete_step() -> None:
    first, last = helpers.stages("mlp", 2)
    inputs, labels = helpers.batch(helpers.IMAGES, 1, 4)
    with pytest.raises(StaleError, match="has no norms of step 1: nothing is pending"):
        first.square_norms(1)
    hidden = first.forward(MicrobatchId(1, 0), inputs)
    first.forward(MicrobatchId(1, 1), inputs)
    result = last.loss(MicrobatchId(1, 0), hidden, {"labels": labels}, 8)
    assert len(last.square_norms(1)) == len(last.blocks)
    with pytest.raises(StaleError, match="step 1 is pending"):
        last.square_norms(2)
    assert result.gradient is not None
    first.backward(MicrobatchId(1, 0), result.gradient)
    with pytest.raises(StaleError, match="1 microbatches have no gradient yet"):
        first.square_norms(1)


def test_a_broken_gradient_skips_the_step_when_it_is_clipped() -> None:
    (stage,) = helpers.stages("mlp", 1, clip_norm=1.0)
    drive = helpers.Drive([stage])
    before = stage.flatten()
    drive.compute(1, *helpers.batch(helpers.IMAGES, 1))
    parameter = next(stage.blocks.parameters())
    assert parameter.grad is not None
    parameter.grad[0, 0] = math.inf
    drive.conclude(1)
    assert drive.factors == [0.0]
    assert stage.version == 1
    assert torch.equal(stage.flatten(), before)
