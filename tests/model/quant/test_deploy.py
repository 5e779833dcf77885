"""A deployed layer is the trained one, bit for bit; its tensors are whole numbers, scales and offsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distqat.errors import ModelError
from distqat.model.quant import hardware, layers
from distqat.model.quant.deploy import DeployedLayer, deploy
from distqat.model.quant.grid import Grid
from distqat.model.quant.quantizers import LearnedInputs, LearnedWeights
from distqat.model.quant.slices import Hardware, joined
from tests.model.quant.test_hardware import FORMS, LAYERS, built

ARRAYS = [Hardware(), Hardware(slice_bits=3), Hardware(2, 4, 4)]


@pytest.mark.parametrize("made", ARRAYS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_deployed_layer_gives_the_same_bits(name: str, form: str, made: Hardware) -> None:
    blocks = nn.ModuleList([built(name, made, FORMS[form])]).eval()
    values = torch.randn(LAYERS[name][1])
    with torch.no_grad():
        expected = blocks[0](values)
        (layer,) = deploy(blocks).values()
        assert torch.equal(layer(values), expected)
    assert isinstance(layer, type(LAYERS[name][0]()))
    assert not [path for path, _ in blocks.named_modules() if "quantizer" in path]
    assert not [path for path, _ in blocks.named_parameters() if "bias" not in path]


@pytest.mark.parametrize("is_learned", [False, True])
def test_its_tensors_are_whole_numbers_and_scales(is_learned: bool) -> None:
    layer = built("conv2d", Hardware(3), FORMS["weight channels"], is_learned)
    weight = layer.weight.detach().clone()
    blocks = nn.ModuleList([layer])
    (deployed,) = deploy(blocks).values()
    state = blocks.state_dict()
    assert set(state) == {f"0.{name}" for name in ("weight", "weight_scale", "weight_slices", "input_scale", "bias")}
    assert (state["0.weight"].dtype, state["0.weight_scale"].shape) == (torch.int8, (4,))
    near = state["0.weight"].float() * state["0.weight_scale"].view(4, 1, 1, 1)
    within = state["0.weight"].abs() < 7
    assert bool(((near - weight).abs() <= state["0.weight_scale"].view(4, 1, 1, 1) / 2 + 1e-6)[within].all())
    assert state["0.weight_slices"].dtype == torch.int8
    assert torch.equal(joined(state["0.weight_slices"], Hardware(3)), state["0.weight"])
    assert deployed.facts() == {
        "weights": {"bits": 4, "signed": True, "per": "channel", "axis": 0},
        "activations": {"bits": 3, "signed": True, "per": "tensor"},
        "slice_bits": 3,
        "accumulator_length": 0,
        "accumulator_bits": 0,
    }


def test_codes_without_a_sign_are_without_one() -> None:
    layer: Any = nn.Linear(4, 3)
    layers.quantise(layer, LearnedWeights(Grid(8, False), None), None, Hardware(8))
    nn.init.uniform_(layer.weight, 0, 1)
    with torch.no_grad():
        layer.weight_quantizer.step.fill_(1 / 300)
    blocks = nn.ModuleList([layer])
    values = torch.randn(2, 4)
    expected = blocks[0](values)
    deploy(blocks)
    state = blocks.state_dict()
    assert state["0.weight"].dtype == state["0.weight_slices"].dtype == torch.uint8
    assert int(state["0.weight"].max()) > 127
    assert torch.equal(state["0.weight_slices"][0], state["0.weight"])
    assert "0.input_scale" not in state
    assert torch.equal(blocks[0](values), expected)


def test_only_inputs() -> None:
    layer: Any = nn.Linear(4, 3)
    layers.quantise(layer, None, LearnedInputs(Grid(4), None, True))
    values = torch.randn(2, 4)
    layer(values)
    blocks = nn.ModuleList([layer]).eval()
    expected, weight = blocks[0](values), layer.weight.detach().clone()
    (deployed,) = deploy(blocks).values()
    assert torch.equal(deployed(values), expected)
    assert torch.equal(blocks.state_dict()["0.weight"], weight)
    assert deployed.facts()["weights"] is None


def test_a_weight_that_was_computed_from_others_is_written_as_one() -> None:
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3), dim=2)
    layers.quantise(convolution, LearnedWeights(Grid(8), None), None)
    blocks, values = nn.ModuleList([convolution]).eval(), torch.randn(2, 4, 9)
    expected = blocks[0](values)
    deploy(blocks)
    assert set(blocks.state_dict()) == {"0.weight", "0.weight_scale", "0.bias"}
    assert torch.equal(blocks[0](values), expected)


def test_what_has_seen_no_data_is_refused_and_left_alone() -> None:
    layer = nn.Linear(4, 3)
    layers.quantise(layer, LearnedWeights(Grid(4), None), LearnedInputs(Grid(4), None))
    blocks = nn.ModuleList([nn.Sequential(layer)])
    before = set(blocks.state_dict())
    with pytest.raises(ModelError, match=r"layer 0.0 has no step for its activations yet"):
        deploy(blocks)
    assert set(blocks.state_dict()) == before
    assert not isinstance(layer, DeployedLayer)


@pytest.mark.parametrize("name", ["linear", "conv2d", "gpt2"])
def test_integer_arithmetic_gives_the_layer(name: str) -> None:
    """From the tensors that are written alone: int64 sums of codes are those of the fake-quantised layer, exactly."""
    layer = built(name, Hardware(), FORMS["weight channels"]).eval()
    values = torch.randn(LAYERS[name][1])
    with torch.no_grad():
        expected = layer(values)
        # In fp64 the layer's own sums are found again: they are whole numbers.
        exact = layers.apply(
            layer.double(), layer.input_quantizer(values.double()), layer.weight_quantizer(layer.weight)
        )
    blocks = nn.ModuleList([layer.float()])
    deploy(blocks)
    state = {path.partition(".")[2]: tensor.numpy() for path, tensor in blocks.state_dict().items()}
    codes = np.clip(np.rint(values.numpy() / state["input_scale"]), -4, 3).astype(np.int64)
    rows = hardware.rows(layer, torch.from_numpy(state["weight"].astype(np.int64)))
    sums = rows @ hardware.columns(layer, torch.from_numpy(codes).double()).long()
    assert sums.dtype == torch.int64
    outputs = (-1, *[1] * (expected.dim() - 2))
    step = torch.from_numpy(state["weight_scale"]).double().view(outputs) * float(state["input_scale"])
    placed = hardware.placed(layer, sums, values)
    bias = torch.from_numpy(state["bias"]).double().view(outputs)
    torch.testing.assert_close((exact - bias) / step, placed.double(), rtol=0, atol=1e-4)
    assert torch.equal(((exact - bias) / step).round().long(), placed)
    torch.testing.assert_close(placed.double() * step + bias, expected.double(), rtol=1e-5, atol=1e-6)
