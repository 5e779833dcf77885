"""Layers of hardware with bounded accumulators are, product by product, what plain Python makes of their codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distqat.model.quant import hardware, integer, layers
from distqat.model.quant.grid import Grid, beside
from distqat.model.quant.integer import Array
from distqat.model.quant.quantizers import LearnedInputs, LearnedWeights, ObservedInputs, ObservedWeights
from distqat.model.quant.slices import Hardware
from tests.model.quant import arithmetic
from tests.model.quant.test_layers import gpt_linear

BITS = (2, 3, 4, 8)


@given(
    st.sampled_from([Grid(bits, is_signed) for bits in BITS for is_signed in (True, False)]),
    st.sampled_from([Grid(bits, is_signed) for bits in BITS for is_signed in (True, False)]),
    st.builds(Hardware, st.integers(0, 8), st.integers(0, 12), st.sampled_from([0, 2, 4, 6, 9, 14, 32])),
    st.integers(1, 30),
    st.integers(0, 1 << 30),
)
@settings(max_examples=150, deadline=None)
def test_sums_are_those_of_the_oracle(weights: Grid, inputs: Grid, made: Hardware, products: int, seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    groups, rows, places = 2, 3, 4
    w = torch.randint(weights.lowest, weights.highest + 1, (groups, rows, products), generator=numbers)
    x = torch.randint(inputs.lowest, inputs.highest + 1, (groups, products, places), generator=numbers)
    sums = integer.accumulate(w.float(), x.float(), Array(made, weights, inputs))
    expected = [
        [[arithmetic.dot(row, column, weights, made) for column in zip(*x[group].tolist(), strict=True)] for row in own]
        for group, own in enumerate(w.tolist())
    ]
    assert torch.equal(sums, torch.tensor(expected).to(sums.dtype))


def test_sums_beyond_what_fp32_holds_are_exact() -> None:
    for made in (Hardware(), Hardware(accumulator_bits=24), Hardware(accumulator_length=2999, accumulator_bits=32)):
        w, x = torch.full((1, 1, 3001), 127.0), torch.full((1, 3001, 1), 255.0)
        w[0, 0, 0], x[0, 1, 0] = 126, 254
        sums = integer.accumulate(w, x, Array(made, Grid(8), Grid(8, False)))
        grid, codes = Grid(8), [int(code) for code in w.flatten()]
        assert int(sums) == arithmetic.dot(codes, [int(code) for code in x.flatten()], grid, made)


def test_an_accumulator_for_more_products_than_there_are() -> None:
    made, grid = Hardware(2, 10**12, 5), Grid(4)
    numbers = torch.Generator().manual_seed(3)
    w, x = (torch.randint(-8, 8, shape, generator=numbers).float() for shape in ((1, 3, 9), (1, 9, 4)))
    rows, columns = w[0].int().tolist(), x[0].t().int().tolist()
    expected = torch.tensor([[arithmetic.dot(row, column, grid, made) for column in columns] for row in rows])
    assert torch.equal(integer.accumulate(w, x, Array(made, grid, grid))[0], expected.double())
    by_channel = integer.accumulate_by_channel(w, x, torch.ones(1, 1), Array(made, grid, grid))
    assert torch.equal(by_channel[0], expected.double())


def test_accumulators_that_cannot_saturate_cost_no_more_than_none() -> None:
    w, x, steps = torch.ones(1, 8, 12), torch.ones(1, 12, 5), torch.full((1, 4), 0.25)
    plain = 2 * 8 * 12 * 5
    for bits, is_bounded in ((32, False), (6, True)):
        array = Array(Hardware(2, 2, bits), Grid(8), Grid(8))
        with FlopCounterMode(display=False) as counter:
            integer.accumulate(w, x, array)
            alone = counter.get_total_flops()
            integer.accumulate_by_channel(w, x, steps, array)
        assert (alone > plain) == is_bounded
        assert (counter.get_total_flops() - alone > plain) == is_bounded


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(9, 4), (3, 9)),
    "bare linear": (lambda: nn.Linear(9, 4, bias=False), (3, 9)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(1, 2)), (2, 3, 5, 6)),
    "gpt2": (gpt_linear, (3, 6)),
}
FORMS: dict[str, dict[str, bool]] = {
    "tensor": {},
    "weight channels": {"weight_channels": True},
    "unsigned": {"is_signed": False},
    "offset": {"has_offset": True},
    "channels with offsets": {"weight_channels": True, "input_channels": True, "has_offset": True},
}
ARRAYS = [Hardware(0, 0, 6), Hardware(0, 4, 4), Hardware(2, 5, 4), Hardware(3, 3, 20)]


def built(name: str, made: Hardware, form: dict[str, bool], is_learned: bool = True) -> Any:
    """A layer in training, whose steps have begun."""
    torch.manual_seed(7)
    make, shape = LAYERS[name]
    layer: Any = make()
    of_weight = layers.weight_channels(layer) if form.get("weight_channels") else None
    of_input = layers.input_channels(layer) if form.get("input_channels") else None
    inputs = Grid(3, form.get("is_signed", True))
    if is_learned:
        quantizers = LearnedWeights(Grid(4), of_weight), LearnedInputs(inputs, of_input, form.get("has_offset", False))
    else:
        quantizers = ObservedWeights(Grid(4), of_weight, 99.0), ObservedInputs(inputs, of_input, 99.0)  # type: ignore[assignment]
    layers.quantise(layer, *quantizers, made)
    layer(torch.randn(shape))
    return layer


def by_hand(layer: Any, values: Tensor) -> Tensor:
    """What leaves the layer, from the oracle's sums, in fp64; bias and offsets by torch's own fp64 layer."""
    weight, inputs = layer.weight_quantizer.code(layer.weight), layer.input_quantizer.code(values)
    rows = hardware.rows(layer, weight.codes).flatten(0, 1).long().tolist()
    groups, steps = getattr(layer, "groups", 1), inputs.step.double().view(-1)
    offset = torch.zeros(()) if inputs.offset is None else inputs.offset
    spread = beside(offset, values, None if offset.dim() == 0 else layer.input_quantizer.channels).expand(values.shape)
    result: Tensor = without_bias(layer, spread.double(), weight.codes.double())
    # With a step for each channel, what a channel adds is a sum of its own.
    channels = len(steps) // groups if len(steps) > 1 else 1
    for index in torch.cartesian_prod(*(torch.arange(size) for size in result.shape)).tolist():
        sample, output, *place = index
        codes = arithmetic.inputs_of(layer, inputs.codes, sample, output, place)
        own, group = len(codes) // channels, output // (len(rows) // groups)
        for channel in range(channels):
            part = slice(channel * own, (channel + 1) * own)
            held = arithmetic.dot(rows[output][part], codes[part], Grid(4), layer.hardware)
            result[tuple(index)] += held * steps[group * channels + channel if channels > 1 else 0]
    outputs = (-1, *[1] * (result.dim() - 2))
    step: Tensor = weight.step.double().view(outputs) if weight.step.dim() else weight.step.double()
    result = result * step
    bias: Tensor | None = layer.bias
    return result if bias is None else result + bias.double().view(outputs)


def without_bias(layer: Any, values: Tensor, weight: Tensor) -> Tensor:
    """What torch makes of these values and weights."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        convolve: Any = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        made: Tensor = convolve(values, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return made
    result: Tensor = values @ (weight.t() if isinstance(layer, nn.Linear) else weight)
    return result


@pytest.mark.parametrize("made", ARRAYS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_what_the_oracle_makes_of_its_codes(name: str, form: str, made: Hardware) -> None:
    layer = built(name, made, FORMS[form])
    values = torch.randn(LAYERS[name][1])
    with torch.no_grad():
        expected = by_hand(layer, values)
        found = layer(values)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_learned_or_observed_a_wide_accumulator_changes_nothing_but_rounding(name: str) -> None:
    for is_learned in (True, False):
        layer = built(name, Hardware(2, 5, 32), {"weight_channels": True}, is_learned)
        values = torch.randn(LAYERS[name][1])
        found = layer(values)
        layer.hardware = layers.UNBOUNDED
        torch.testing.assert_close(found, layer(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_pass_straight_through(name: str) -> None:
    layer = built(name, Hardware(0, 4, 3), {"weight_channels": True})
    values = torch.randn(LAYERS[name][1])
    found = []
    for made in (layer.hardware, layers.UNBOUNDED):
        layer.hardware = made
        own = values.clone().requires_grad_()
        result = layer(own)
        parameters = [own, *layer.parameters()]
        found.append((result.detach(), torch.autograd.grad(result, parameters, torch.ones_like(result))))
    (bounded, of_bounded), (plain, of_plain) = found
    assert not torch.allclose(bounded, plain)
    assert all(torch.equal(one, other) for one, other in zip(of_bounded, of_plain, strict=True))


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_borders_of_other_kinds(mode: Any) -> None:
    torch.manual_seed(1)
    layer: Any = nn.Conv2d(2, 3, 3, padding="same", padding_mode=mode)
    layers.quantise(layer, LearnedWeights(Grid(4), None), LearnedInputs(Grid(4), None, True), Hardware(0, 0, 32))
    values = torch.randn(2, 2, 5, 5)
    found = layer(values)
    layer.hardware = layers.UNBOUNDED
    torch.testing.assert_close(found, layer(values), rtol=1e-5, atol=1e-5)


def test_a_result_has_the_type_of_the_layer() -> None:
    layer = built("linear", Hardware(0, 4, 6), {})
    values = torch.randn(3, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = layer(values)
        with torch.no_grad():
            looked = layer(values)
    assert trained.dtype == looked.dtype == torch.bfloat16
    assert torch.equal(trained, looked)


def test_before_steps_have_begun_inputs_pass_as_they_are() -> None:
    layer: Any = nn.Linear(4, 4)
    layers.quantise(layer, LearnedWeights(Grid(4), None), LearnedInputs(Grid(4), None), Hardware(0, 2, 4))
    layer.eval()
    values = torch.randn(2, 4)
    assert torch.equal(layer(values), layers.apply(layer, values, layer.weight_quantizer(layer.weight)))


def test_accumulators_need_codes_of_both_sides() -> None:
    with pytest.raises(ValueError, match="must both be quantised"):
        layers.quantise(nn.Linear(4, 4), LearnedWeights(Grid(4), None), None, Hardware(0, 2, 4))


def test_memory_for_waiting_sums_is_bounded() -> None:
    """However many accumulators an output has, a few of them wait at a time."""
    array = Array(Hardware(2, 8, 6), Grid(8), Grid(8))
    w, x = torch.ones(1, 128, 4096), torch.ones(1, 4096, 2)
    parts = list(integer.saturated(w, x, array, 8))
    assert len(parts) == 256
    assert all(part.shape[1] * part.shape[2] <= integer.ROWS_AT_ONCE for part in parts)
    few = list(integer.saturated(torch.ones(1, 2, 4096), x, array, 8))
    assert len(few) == 4
