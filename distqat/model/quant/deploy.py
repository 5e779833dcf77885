"""A quantised model as it is used after training: layers hold whole numbers and scales, and learn nothing any more.

A deployed layer has the tensors that are written, under these names:

    weight          codes: int8, or uint8 without a sign; a weight that is not quantised stays as it is
    weight_scale    () or [channels that leave]; a code times its scale is the weight
    weight_slices   [slices, ...] with quant.slice_bits only: the least significant slice of the codes first
    input_scale     () or [channels that enter]; what enters is rounded to codes times this, plus the offset
    input_offset    likewise, with lsq+ only
    bias            as it is
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.model.quant import hardware, layers
from distqat.model.quant.grid import Channels, Grid
from distqat.model.quant.integer import Array
from distqat.model.quant.layers import QuantisedLayer
from distqat.model.quant.quantizers import Coded, Quantizer
from distqat.model.quant.rounding import codes_of, effective, values_of
from distqat.model.quant.slices import Hardware, sliced


@dataclass(frozen=True)
class Format:
    """In which whole numbers a tensor is."""

    grid: Grid
    channels: Channels | None

    def facts(self) -> dict[str, Any]:
        """For a file of JSON; `axis` is that of the channels, and there is none if they share a scale."""
        per = {"per": "tensor"} if self.channels is None else {"per": "channel", "axis": self.channels.axis}
        return {"bits": self.grid.bits, "signed": self.grid.is_signed, **per}


class DeployedLayer(nn.Module):
    """What is put before the class of a layer."""

    weight: Tensor
    weight_scale: Tensor | None
    input_scale: Tensor | None
    input_offset: Tensor | None
    weight_format: Format | None
    """None: the weight is not quantised."""
    input_format: Format | None
    """None: what enters is not quantised."""
    hardware: Hardware

    def forward(self, values: Tensor) -> Tensor:
        if self.hardware.accumulator_bits:
            return self._in_hardware(values)
        rounded, weight = values, self.weight
        if self.input_format is not None and self.input_scale is not None:
            codes = self._input_codes(values, self.input_format)
            rounded = values_of(codes, self.input_scale, self.input_offset, self.input_format.channels)
        if self.weight_format is not None and self.weight_scale is not None:
            weight = values_of(weight.float(), self.weight_scale, None, self.weight_format.channels)
        return layers.apply(self, rounded, weight)

    def facts(self) -> dict[str, Any]:
        """Of its numbers, for a file of JSON; null: not quantised."""
        formats = {"weights": self.weight_format, "activations": self.input_format}
        facts: dict[str, Any] = {name: one.facts() if one is not None else None for name, one in formats.items()}
        return facts | asdict(self.hardware)

    def _in_hardware(self, values: Tensor) -> Tensor:
        assert self.weight_format is not None
        assert self.input_format is not None
        assert self.weight_scale is not None
        assert self.input_scale is not None
        array = Array(self.hardware, self.weight_format.grid, self.input_format.grid)
        weight = Coded(self.weight.float(), self.weight_scale, None)
        inputs = Coded(self._input_codes(values, self.input_format), self.input_scale, self.input_offset)
        return hardware.compute(self, weight, inputs, self.input_format.channels, array).to(values.dtype)

    def _input_codes(self, values: Tensor, form: Format) -> Tensor:
        assert self.input_scale is not None
        return codes_of(values, self.input_scale, self.input_offset, form.grid, form.channels)


def quantised_layers(blocks: nn.Module) -> Iterator[tuple[str, QuantisedLayer]]:
    """Those of a model, with their paths."""
    return ((path, module) for path, module in blocks.named_modules() if isinstance(module, QuantisedLayer))


@torch.no_grad()
def deploy(blocks: nn.Module) -> dict[str, DeployedLayer]:
    """Make the quantised layers of a model deployed ones, in place; by their paths.

    Raises ModelError for a layer that has not seen any data yet; nothing is changed then.
    """
    blocks.eval()
    found = dict(quantised_layers(blocks))
    for path, layer in found.items():
        quantizer = layer.input_quantizer
        if isinstance(quantizer, Quantizer) and quantizer.scale(torch.zeros(())) is None:
            raise ModelError(f"layer {path} has no step for its activations yet: nothing has been trained")
    return {path: _deployed(layer) for path, layer in found.items()}


def _deployed(layer: Any) -> DeployedLayer:
    weights, inputs = layer.weight_quantizer, layer.input_quantizer
    weight = layer.weight.detach()
    coded = weights.code(weight) if isinstance(weights, Quantizer) else None
    step, offset = (isinstance(inputs, Quantizer) and inputs.scale(weight)) or (None, None)
    kind = type(layer).__mro__[2]
    for name in ("weight_quantizer", "input_quantizer", "parametrizations"):
        layer._modules.pop(name, None)
    layer._parameters.pop("weight", None)
    layer.__class__ = _class_for(_plain(kind))
    layer.weight_format = _format_of(weights)
    layer.input_format = _format_of(inputs)
    layer.register_buffer("weight", weight.clone() if coded is None else _stored(coded.codes, weights.grid))
    layer.register_buffer("weight_scale", None if coded is None else coded.step.detach().clone())
    if coded is not None and layer.hardware.slice_bits:
        layer.register_buffer("weight_slices", _slices(coded.codes, weights.grid, layer.hardware))
    layer.register_buffer("input_scale", None if step is None else effective(step.detach()).clone())
    layer.register_buffer("input_offset", None if offset is None else offset.detach().clone())
    made: DeployedLayer = layer
    return made


def _format_of(quantizer: nn.Module) -> Format | None:
    return Format(quantizer.grid, quantizer.channels) if isinstance(quantizer, Quantizer) else None


def _stored(codes: Tensor, grid: Grid) -> Tensor:
    return codes.to(torch.int8 if grid.is_signed else torch.uint8)


def _slices(codes: Tensor, grid: Grid, made: Hardware) -> Tensor:
    """In int8; only a whole code without a sign may need more."""
    kind = torch.uint8 if made.num_slices(grid) == 1 and not grid.is_signed else torch.int8
    return sliced(codes, grid, made).to(kind)


def _plain(kind: Any) -> Any:
    """The class of a layer whose weight is no longer computed from others."""
    return kind.__bases__[0] if kind.__name__.startswith("Parametrized") else kind


@cache
def _class_for(kind: Any) -> Any:
    return type(f"Deployed{kind.__name__}", (DeployedLayer, kind), {})
