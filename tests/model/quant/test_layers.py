"""A quantised layer is the layer with a rounded weight and a rounded input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distqat.model.quant import layers
from distqat.model.quant.grid import Grid
from distqat.model.quant.quantizers import LearnedInputs, LearnedWeights
from distqat.model.quant.rounding import rounded


def gpt_linear() -> nn.Module:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    made: nn.Module = Conv1D(7, 6)
    return made


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "linear": (lambda: nn.Linear(6, 7), (3, 2, 6), lambda own, x, w: F.linear(x, w, own.bias)),
    "bare linear": (lambda: nn.Linear(6, 7, bias=False), (3, 6), lambda own, x, w: F.linear(x, w)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, 2, groups=2), (3, 6, 9), lambda o, x, w: F.conv1d(x, w, o.bias, 2, groups=2)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, padding=1), (3, 6, 5, 5), lambda o, x, w: F.conv2d(x, w, o.bias, padding=1)),
    "gpt2": (gpt_linear, (3, 2, 6), lambda own, x, w: x @ w + own.bias),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_it_computes_with_rounded_numbers(name: str, per_channel: bool) -> None:
    torch.manual_seed(3)
    make, shape, plain = CASES[name]
    layer: Any = make()
    values = torch.randn(shape)
    names = [own for own, _ in layer.named_parameters()]
    kind = type(layer)
    of_weight = layers.weight_channels(layer) if per_channel else None
    of_input = layers.input_channels(layer) if per_channel else None
    layers.quantise(layer, LearnedWeights(Grid(3), of_weight), LearnedInputs(Grid(3), of_input))
    result = layer(values)
    assert isinstance(layer, kind)
    assert [own for own, _ in layer.named_parameters()][: len(names)] == names
    x = rounded(values, layer.input_quantizer.step, None, Grid(3), of_input)
    w = rounded(layer.weight, layer.weight_quantizer.step, None, Grid(3), of_weight)
    torch.testing.assert_close(result, plain(layer, x, w))
    if per_channel:
        assert layer.weight_quantizer.step.shape == (result.shape[1 if "conv" in name else -1],)
        assert layer.input_quantizer.step.shape == (6,)
    torch.autograd.backward(result.square().sum())
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("name", ["bare linear", "conv2d"])
def test_it_is_integer_arithmetic(name: str) -> None:
    """With steps that are powers of two fp32 loses nothing, and the layer is one of whole numbers to the bit."""
    torch.manual_seed(4)
    make, shape, plain = CASES[name]
    layer: Any = make()
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)
    values = torch.randn(shape)
    layers.quantise(layer, LearnedWeights(Grid(4), None), LearnedInputs(Grid(8), None))
    layer(values)
    with torch.no_grad():
        layer.weight_quantizer.step.fill_(2.0**-4)
        layer.input_quantizer.step.fill_(2.0**-5)
        result = layer(values)
        weight = (layer.weight * 2**4).round().clamp(-8, 7).double()
        inputs = (values * 2**5).round().clamp(-128, 127).double()
        layer.double()
        whole = plain(layer, inputs, weight)
    assert torch.equal(whole, whole.round())
    assert torch.equal(result.double(), whole * 2.0**-9)


@pytest.mark.parametrize("name", CASES)
def test_without_quantizers_it_is_the_layer(name: str) -> None:
    make, shape, _ = CASES[name]
    layer = make()
    values = torch.randn(shape)
    before = layer(values)
    layers.quantise(layer, None, None)
    assert torch.equal(layer(values), before)


def test_a_layer_whose_weight_is_computed() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3), dim=2)
    layers.quantise(layer, LearnedWeights(Grid(8), None), None)
    result = layer(torch.randn(2, 4, 9))
    torch.autograd.backward(result.sum())
    assert all(parameter.grad is not None for parameter in layer.parameters())


class Peculiar(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Renamed(nn.Linear):
    pass


def test_what_can_be_quantised() -> None:
    assert layers.axes_of(Renamed(2, 2)) is not None
    assert {"Renamed", "Linear"} <= layers.class_names(Renamed(2, 2))
    attention = nn.MultiheadAttention(4, 2)
    for other in (Peculiar(2, 2), nn.Embedding(2, 2), nn.ConvTranspose1d(2, 2, 2), attention.out_proj, nn.Identity()):
        assert layers.axes_of(other) is None


def test_the_library_is_not_imported_for_its_layer() -> None:
    script = "import sys; from distqat.model.quant import layers, plan; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
