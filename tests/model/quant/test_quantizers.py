"""Where steps begin, when, and how their gradients are scaled; and what observers see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distqat.model.quant.grid import Channels, Grid
from distqat.model.quant.quantizers import (
    NORMAL_MAGNITUDE,
    LearnedInputs,
    LearnedWeights,
    ObservedInputs,
    ObservedWeights,
)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_weights_step_begins_with_the_weights() -> None:
    weight = drawn(6, 5)
    for channels, means in ((None, weight.abs().mean()), (Channels(0, 6), weight.abs().mean(1))):
        quantizer = LearnedWeights(Grid(4), channels)
        quantizer.begin(weight)
        torch.testing.assert_close(quantizer.step.detach(), 2 * means / math.sqrt(7))


def test_an_inputs_step_begins_with_the_first_values_in_training_and_only_once() -> None:
    quantizer, values = LearnedInputs(Grid(4, is_signed=False), None), drawn(3, 5)
    first = 2 * NORMAL_MAGNITUDE / math.sqrt(15)
    quantizer.eval()
    assert quantizer(values) is values
    assert float(quantizer.step.detach()) == pytest.approx(first)
    quantizer.train()
    quantizer(values)
    begun = quantizer.step.detach().clone()
    assert float(begun) == pytest.approx(2 * float(values.abs().mean()) / math.sqrt(15))
    quantizer(100 * values)
    assert torch.equal(quantizer.step, begun)
    quantizer.eval()
    assert not torch.equal(quantizer(values), values)


def test_a_joiner_with_state_does_not_begin_anew() -> None:
    donor, joiner = LearnedInputs(Grid(4), None, has_offset=True), LearnedInputs(Grid(4), None, has_offset=True)
    donor(drawn(3, 5))
    joiner(drawn(3, 5, seed=2))
    joiner.load_state_dict(donor.state_dict())
    joiner(drawn(3, 5, seed=3))
    assert torch.equal(joiner.step, donor.step)
    fresh = LearnedInputs(Grid(4), None, has_offset=True)
    with torch.no_grad():
        for name, own in fresh.state_dict().items():
            own.copy_(donor.state_dict()[name])
    fresh(drawn(3, 5, seed=4))
    assert torch.equal(fresh.step, donor.step)


def test_a_step_that_is_taken_back_begins_again() -> None:
    quantizer = LearnedInputs(Grid(4), None)
    quantizer(drawn(3, 5))
    quantizer.initialised.zero_()
    quantizer(10 * drawn(3, 5))
    assert float(quantizer.step.detach()) == pytest.approx(20 * float(drawn(3, 5).abs().mean()) / math.sqrt(7))


def test_an_offset_begins_so_that_the_grid_covers_the_values() -> None:
    values = drawn(8, 4) + 3
    for channels in (None, Channels(-1, 4)):
        quantizer = LearnedInputs(Grid(8), channels, has_offset=True)
        result = quantizer(values).detach()
        assert float((result - values).abs().max()) <= float(quantizer.step.detach().max()) / 2 + 1e-5


def test_first_values_that_are_not_finite_are_refused_and_change_nothing() -> None:
    quantizer = LearnedInputs(Grid(4), None)
    before = quantizer.step.detach().clone()
    with pytest.raises(ValueError, match="not all finite"):
        quantizer(torch.tensor([[1.0, math.nan]]))
    assert torch.equal(quantizer.step, before)
    assert not quantizer.initialised


def test_channels_of_zeros_have_a_step() -> None:
    values = drawn(8, 3)
    values[:, 1] = 0
    quantizer = LearnedInputs(Grid(4), Channels(-1, 3))
    quantizer(values)
    step = quantizer.step.detach()
    assert bool((step > 0.1).all())
    zeros = LearnedInputs(Grid(4), None)
    zeros(torch.zeros(2, 3))
    assert float(zeros.step.detach()) == 1.0


@pytest.mark.parametrize("per_channel", [False, True])
def test_gradients_are_scaled_as_published(per_channel: bool) -> None:
    """1 / sqrt(N Qp), N weights, or features of a sample, for each step."""
    weight, inputs = drawn(6, 5), drawn(4, 5, 3)
    of_weights = LearnedWeights(Grid(3), Channels(0, 6) if per_channel else None)
    of_weights.begin(weight)
    of_inputs = LearnedInputs(Grid(3), Channels(1, 5) if per_channel else None)
    numbers = ((of_weights, weight, 5 if per_channel else 30), (of_inputs, inputs, 3 if per_channel else 15))
    for quantizer, values, elements in numbers:
        # Far above the grid each element's slope is Qp = 3.
        (far,) = torch.autograd.grad(quantizer(values * 0 + 1e6).sum(), [quantizer.step])
        shared = values.numel() / quantizer.step.numel()
        expected = torch.full_like(far, 3 * shared / math.sqrt(elements * 3))
        if quantizer is of_inputs:  # Its step has just begun with these values: places are 2.
            step = float(quantizer.step.detach().flatten()[0])
            place = 1e6 / step
            slope = 3.0 if place >= 3 else round(place) - place
            expected = torch.full_like(far, slope * shared / math.sqrt(elements * 3))
        torch.testing.assert_close(far, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_batch_is_the_sum_of_its_microbatches() -> None:
    values = drawn(8, 5)
    quantizer = LearnedInputs(Grid(3), None)
    quantizer(values)
    (whole,) = torch.autograd.grad(quantizer(values).sum(), [quantizer.step])
    parts = [torch.autograd.grad(quantizer(part).sum(), [quantizer.step])[0] for part in values.chunk(4)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_an_observer_takes_the_microbatchs_range_in_training_and_the_running_one_after() -> None:
    quantizer = ObservedInputs(Grid(8), None, 100.0)
    quantizer.eval()
    values = drawn(4, 5)
    assert quantizer(values) is values
    quantizer.train()
    largest = float(values.abs().max())
    assert float((quantizer(values) - values).abs().max()) <= largest / 127 / 2 + 1e-6
    assert float(quantizer.bound) == largest
    quantizer(2 * values)
    assert float(quantizer.bound) == pytest.approx(1.1 * largest)
    quantizer.eval()
    assert float(quantizer(1000 * values).abs().max()) == pytest.approx(1.1 * largest * 128 / 127, rel=0.01)


@pytest.mark.parametrize("channels", [None, Channels(0, 4)])
def test_a_percentile_leaves_out_the_few_largest(channels: Channels | None) -> None:
    weight = torch.rand(4, 1000, generator=torch.Generator().manual_seed(1))
    weight[:, 0] = 50.0
    assert float(ObservedWeights(Grid(8), channels, 100.0)(weight).max()) == 50.0
    assert float(ObservedWeights(Grid(8), channels, 99.5)(weight).max()) < 1.1


def test_observers_pass_gradients_within_the_range() -> None:
    values = torch.tensor([[-3.0, 0.5, 1.0, 9.0]], requires_grad=True)
    quantizer = ObservedInputs(Grid(8), None, 75.0)
    (slopes,) = torch.autograd.grad(quantizer(values).sum(), [values])
    assert slopes.tolist() == [[1.0, 1.0, 1.0, 0.0]]
