"""Which numbers a layer computes in, by the rules of the run. Pure.

A rule names layers by a glob of their path in the whole model, by their class, or by both. All rules that match a layer
count, the more specific one after the less specific: each setting is what the most specific rule says that names it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase

from distqat.model.quant.slices import Hardware
from distqat.quant_sections import NumberChange, NumberFormat, QuantRule, QuantSection

WILD = "*?["

_OF_HARDWARE = {field.name for field in fields(Hardware)}


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantised."""

    path: str
    """In the whole model, whatever the cut: the block's name and the path in it, such as `group0.0.first`."""
    kinds: frozenset[str]
    """Names of its class and of those above."""


@dataclass(frozen=True)
class Numbers:
    """How a layer computes; None: as it is."""

    weights: NumberFormat | None
    activations: NumberFormat | None
    hardware: Hardware = field(default_factory=Hardware)
    """What multiplies and adds them."""

    @property
    def are_plain(self) -> bool:
        """Whether nothing is quantised."""
        return self.weights is None and self.activations is None


def is_match(rule: QuantRule, layer: Layer) -> bool:
    """Whether the rule speaks of that layer."""
    by_path = rule.match is None or fnmatchcase(layer.path, rule.match)
    return by_path and (rule.kind is None or rule.kind in layer.kinds)


def specificity(rule: QuantRule) -> tuple[bool, int, bool]:
    """What grows from rule to more specific rule. Of equals the later one wins.

    A whole path comes before a glob, a glob with more letters before one with fewer, and those before a class alone;
    of the same glob the one with a class.
    """
    glob = rule.match or "*"
    letters = sum(letter not in WILD for letter in glob)
    return not any(letter in WILD for letter in glob), letters, rule.kind is not None


def numbers_of(layer: Layer, section: QuantSection) -> Numbers:
    """What the rules make of a layer."""
    weights, activations, is_excluded = section.weights, section.activations, False
    hardware = Hardware(section.slice_bits, section.accumulator_length, section.accumulator_bits)
    for rule in sorted((rule for rule in section.rules if is_match(rule, layer)), key=specificity):
        weights, activations = _changed(weights, rule.weights), _changed(activations, rule.activations)
        is_excluded = is_excluded if rule.exclude is None else rule.exclude
        hardware = replace(hardware, **rule.model_dump(include=_OF_HARDWARE, exclude_none=True))
    if is_excluded:
        return Numbers(None, None)
    return Numbers(weights if weights.bits else None, activations if activations.bits else None, hardware)


def idle(rules: Iterable[QuantRule], layers: Collection[Layer]) -> list[QuantRule]:
    """The rules that speak of none of the layers."""
    return [rule for rule in rules if not any(is_match(rule, layer) for layer in layers)]


def _changed(numbers: NumberFormat, change: NumberChange) -> NumberFormat:
    return numbers.model_copy(update=change.model_dump(exclude_none=True))
