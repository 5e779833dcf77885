"""Layers that can be quantised: linear ones, convolutions, and GPT-2's Conv1D, which is a linear one.

A quantised layer is the layer itself with two more modules and a class that makes use of them, so its parameters keep
their names and whoever looks for a linear layer still finds one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distqat.model.quant import hardware as arrays
from distqat.model.quant.grid import Channels
from distqat.model.quant.integer import Array
from distqat.model.quant.quantizers import LearnedWeights, Quantizer
from distqat.model.quant.rounding import straight_through
from distqat.model.quant.slices import Hardware

UNBOUNDED = Hardware()

GPT_LINEAR = ("transformers.pytorch_utils", "Conv1D")
"""Where it is; the library is not imported to look for it."""


@dataclass(frozen=True)
class Axes:
    """Where a kind of layer has its channels."""

    weight_output: int
    """Of the weight: what leaves the layer."""
    weight_input: int
    """Of the weight: what enters it. (Of grouped convolutions, one group of it.)"""
    values: int
    """Of what enters."""


_PLAIN: tuple[tuple[type[nn.Module], Axes], ...] = (
    (nn.Linear, Axes(0, 1, -1)),
    (nn.Conv1d, Axes(0, 1, 1)),
    (nn.Conv2d, Axes(0, 1, 1)),
)
_TRANSPOSED = Axes(1, 0, -1)
_NEVER_CALLED = ("NonDynamicallyQuantizableLinear",)
"""Part of `nn.MultiheadAttention`, which takes its weights and not its forward."""


def axes_of(module: nn.Module) -> Axes | None:
    """None for what cannot be quantised, such as a class with a forward of its own."""
    kind = type(module)
    if (kind.__module__, kind.__name__) == GPT_LINEAR:
        return _TRANSPOSED
    if kind.__name__ in _NEVER_CALLED:
        return None
    return next((axes for plain, axes in _PLAIN if kind.forward is plain.forward), None)


def class_names(module: nn.Module) -> set[str]:
    """Its class and those above it, up to that of all modules."""
    return {kind.__name__ for kind in type(module).__mro__} - {"Module", "object"}


def weight_channels(module: nn.Module) -> Channels:
    """One step for each channel that leaves."""
    axes, weight = _axes(module), _weight(module)
    return Channels(axes.weight_output, weight.shape[axes.weight_output])


def input_channels(module: nn.Module) -> Channels:
    """One step for each channel that enters."""
    axes = _axes(module)
    return Channels(axes.values, _weight(module).shape[axes.weight_input] * getattr(module, "groups", 1))


class QuantisedLayer(nn.Module):
    """What is put before the class of a layer."""

    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    hardware: Hardware

    def forward(self, values: Tensor) -> Tensor:
        rounded, weight = self.input_quantizer(values), self.weight_quantizer(self.weight)
        if not self.hardware.accumulator_bits:
            return apply(self, rounded, weight)
        return _in_hardware(self, values, rounded, weight)


def quantise(
    module: nn.Module, weights: Quantizer | None, inputs: Quantizer | None, hardware: Hardware = UNBOUNDED
) -> None:
    """Make a layer round its weights and inputs with these, in place; None leaves them as they are.

    Only with both there is anything that hardware with bounded accumulators could compute; else ValueError.
    """
    if hardware.accumulator_bits and (weights is None or inputs is None):
        raise ValueError("bounded accumulators add products of codes: weights and inputs must both be quantised")
    if isinstance(weights, LearnedWeights):
        weights.begin(_weight(module))
    kind: Any = type(module)
    module.weight_quantizer = weights or nn.Identity()
    module.input_quantizer = inputs or nn.Identity()
    module.hardware = hardware  # type: ignore[assignment]
    module.__class__ = _quantised(kind)


def _in_hardware(layer: Any, values: Tensor, rounded: Tensor, weight: Tensor) -> Tensor:
    """Bounded accumulators going forward; the gradients are those of the layer that has none."""
    inputs, weights = layer.input_quantizer.code(values), layer.weight_quantizer.code(layer.weight)
    if inputs is None:
        return apply(layer, rounded, weight)
    array = Array(layer.hardware, layer.weight_quantizer.grid, layer.input_quantizer.grid)
    with torch.no_grad():
        exact = arrays.compute(layer, weights, inputs, layer.input_quantizer.channels, array)
    if not torch.is_grad_enabled():
        return exact.to(_result_type(values))
    plain = apply(layer, rounded, weight)
    return straight_through(exact.to(plain.dtype), plain)


def _result_type(values: Tensor) -> torch.dtype:
    """Of what leaves a layer."""
    device = values.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype


def apply(layer: Any, values: Tensor, weight: Tensor) -> Tensor:
    """The layer's own forward with another weight."""
    result: Tensor
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        result = layer._conv_forward(values, weight, layer.bias)
    elif isinstance(layer, nn.Linear):
        result = F.linear(values, weight, layer.bias)
    else:
        result = torch.addmm(layer.bias, values.reshape(-1, values.shape[-1]), weight)
        result = result.view(*values.shape[:-1], weight.shape[1])
    return result


@cache
def _quantised(kind: Any) -> Any:
    return type(f"Quantised{kind.__name__}", (QuantisedLayer, kind), {})


def _axes(module: nn.Module) -> Axes:
    axes = axes_of(module)
    if axes is None:
        raise ValueError(f"a {type(module).__name__} cannot be quantised")
    return axes


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
