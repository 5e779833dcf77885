"""From a model's plan to one whose blocks are built quantised."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from distqat.errors import ModelError
from distqat.model import rng
from distqat.model.quant import layers, rules
from distqat.model.quant.grid import Grid
from distqat.model.quant.quantizers import (
    LearnedInputs,
    LearnedQuantizer,
    LearnedWeights,
    ObservedInputs,
    ObservedWeights,
    Quantizer,
)
from distqat.model.quant.rules import Layer, Numbers
from distqat.model.ties import BorrowedLinear
from distqat.model.zoo.blocks import BlockSpec, ModelPlan
from distqat.quant_sections import QuantSection

log = logging.getLogger(__name__)


def quantised(plan: ModelPlan, section: QuantSection) -> ModelPlan:
    """The plan with the layers that the section names computing in its numbers; the plan itself if it is off.

    All blocks are looked at, without numbers, so rules mean the same whatever the cut. Raises ModelError for a rule
    that no layer matches (if strict), or when no layer is quantised.
    """
    if section.method == "off":
        return plan
    found = [_layers(spec) for spec in plan.blocks]
    every = [layer for own in found for layer in own.values()]
    _expect_all_rules_to_match(plan, section, every, _tied(plan))
    chosen = [{path: rules.numbers_of(layer, section) for path, layer in own.items()} for own in found]
    _expect_codes_for_hardware(chosen, found)
    if all(numbers.are_plain for own in chosen for numbers in own.values()):
        raise ModelError(f"quant.method is {section.method}, but no layer of model {plan.name} is quantised")
    blocks = (
        replace(spec, finish=partial(_finish, Work(section.method == "lsq+", _percentile(section), own)))
        for spec, own in zip(plan.blocks, chosen, strict=True)
    )
    return replace(plan, blocks=tuple(blocks))


def learned(blocks: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """The steps and offsets of these blocks."""
    for block in blocks:
        for module in block.modules():
            if isinstance(module, LearnedQuantizer):
                yield from module.parameters(recurse=False)


@dataclass(frozen=True)
class Work:
    """What is done to a block."""

    has_offsets: bool
    percentile: float | None
    """Of observed ranges; None where steps are learned."""
    numbers: Mapping[str, Numbers]
    """Of each layer, by its path in the block."""


def _percentile(section: QuantSection) -> float | None:
    return {"minmax": 100.0, "percentile": section.percentile}.get(section.method)


def _expect_all_rules_to_match(plan: ModelPlan, section: QuantSection, every: list[Layer], tied: list[Layer]) -> None:
    some = ", ".join(layer.path for layer in every[:8]) + (", ..." if len(every) > 8 else "")
    for rule in rules.idle(section.rules, every):
        found = [layer.path for layer in tied if rules.is_match(rule, layer)]
        if found and rule.exclude:
            continue
        what, how = f"quant.rules: {rule} matches no layer of model {plan.name}", f"there are: {some}"
        if found:
            what += f" but {', '.join(found)}: its head is tied and has no weights of its own"
            how = "let the rule say exclude: true, leave it out, or set model.options.tie_word_embeddings to false"
        if section.strict:
            raise ModelError(f"{what}; {how}")
        log.warning("%s", what)


def _expect_codes_for_hardware(chosen: Iterable[Mapping[str, Numbers]], found: Iterable[Mapping[str, Layer]]) -> None:
    """Raises ModelError for a layer of which the hardware gets codes of one side only."""
    for numbers, layers_of in zip(chosen, found, strict=True):
        for path, own in numbers.items():
            if own.hardware.accumulator_bits and (own.weights is None) != (own.activations is None):
                what = "weights" if own.weights is None else "activations"
                raise ModelError(
                    f"quant.accumulator_bits: an accumulator adds products of codes, and the {what} of layer "
                    f"{layers_of[path].path} are not quantised; give them bits, or a rule with accumulator_bits: 0"
                )


def _layers(spec: BlockSpec) -> dict[str, Layer]:
    """Those of a block that can be quantised, by their path in it."""
    modules = _shell(spec).named_modules()
    return {path: _layer(spec, path, module) for path, module in modules if layers.axes_of(module) is not None}


def _tied(plan: ModelPlan) -> list[Layer]:
    """Those that compute with weights of another block, and are never quantised."""
    if not plan.is_tied:
        return []
    last = plan.blocks[-1]
    tied = [(path, module) for path, module in _shell(last).named_modules() if isinstance(module, BorrowedLinear)]
    return [_layer(last, path, module) for path, module in tied]


def _layer(spec: BlockSpec, path: str, module: nn.Module) -> Layer:
    # A borrowed layer is a linear one to whoever writes rules.
    kinds = layers.class_names(module) | ({"Linear"} if isinstance(module, BorrowedLinear) else set())
    return Layer(f"{spec.name}.{path}" if path else spec.name, frozenset(kinds))


def _shell(spec: BlockSpec) -> nn.Module:
    """The block, without numbers."""
    # A foreign constructor may draw numbers; nobody else's generators move.
    with rng.borrowed(torch.device("cpu"), 0), torch.device("meta"):
        try:
            return spec.make()
        except RuntimeError as error:
            raise ModelError(f"block {spec.name} cannot be made on the meta device, as quant wants: {error}") from error


def _finish(work: Work, block: nn.Module) -> None:
    for path, numbers in work.numbers.items():
        if not numbers.are_plain:
            module = block.get_submodule(path)
            weights, inputs = _of_weights(work, module, numbers), _of_inputs(work, module, numbers)
            layers.quantise(module, weights, inputs, numbers.hardware)


def _of_weights(work: Work, module: nn.Module, numbers: Numbers) -> Quantizer | None:
    if numbers.weights is None:
        return None
    grid = Grid(numbers.weights.bits, numbers.weights.signed)
    channels = layers.weight_channels(module) if numbers.weights.per == "channel" else None
    if work.percentile is None:
        return LearnedWeights(grid, channels)
    return ObservedWeights(grid, channels, work.percentile)


def _of_inputs(work: Work, module: nn.Module, numbers: Numbers) -> Quantizer | None:
    if numbers.activations is None:
        return None
    grid = Grid(numbers.activations.bits, numbers.activations.signed)
    channels = layers.input_channels(module) if numbers.activations.per == "channel" else None
    if work.percentile is None:
        return LearnedInputs(grid, channels, work.has_offsets)
    return ObservedInputs(grid, channels, work.percentile)
