"""Which rule speaks of which layer, and which of them wins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distqat.model.quant.rules import Layer, Numbers, idle, is_match, numbers_of
from distqat.model.quant.slices import Hardware
from distqat.quant_sections import NumberFormat, QuantRule, QuantSection

CONVOLUTION = Layer("group0.0.first", frozenset({"Conv2d", "_ConvNd"}))
HEAD = Layer("head.linear", frozenset({"Linear"}))


def section(*rules: dict[str, Any], **values: Any) -> QuantSection:
    return QuantSection.model_validate({"method": "lsq", "rules": rules, **values})


def bits(layer: Layer, *rules: dict[str, Any]) -> tuple[int, int]:
    """Of weights and activations; 0 where they stay as they are."""
    found = numbers_of(layer, section(*rules))
    return (found.weights.bits if found.weights else 0, found.activations.bits if found.activations else 0)


def test_without_rules_all_layers_have_the_sections_numbers() -> None:
    own = section(weights={"bits": 4, "per": "channel"}, activations={"bits": 3, "signed": False})
    assert numbers_of(HEAD, own) == Numbers(
        NumberFormat(bits=4, per="channel", signed=True), NumberFormat(bits=3, per="tensor", signed=False)
    )


def test_a_rule_changes_only_what_it_names() -> None:
    own = section({"class": "Linear", "weights": {"bits": 2}}, weights={"bits": 4, "per": "channel"})
    weights = numbers_of(HEAD, own).weights
    assert weights == NumberFormat(bits=2, per="channel")
    assert numbers_of(CONVOLUTION, own).weights == NumberFormat(bits=4, per="channel")


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"class": "Conv2d"}, {"match": "g*"}),
        ({"match": "*"}, {"class": "Conv2d"}),
        ({"match": "group*"}, {"match": "group0*"}),
        ({"match": "group0*"}, {"match": "group0*", "class": "Conv2d"}),
        ({"match": "group0.0.firs*", "class": "Conv2d"}, {"match": "group0.0.first"}),
        ({"match": "group?.0.*"}, {"match": "group*.0.first"}),
        ({"class": "Conv2d"}, {"class": "_ConvNd"}),
    ],
)
def test_the_more_specific_rule_wins(less: dict[str, Any], more: dict[str, Any]) -> None:
    one, other = {**less, "weights": {"bits": 2}}, {**more, "weights": {"bits": 6}}
    assert bits(CONVOLUTION, one, other) == (6, 8)
    if "_ConvNd" not in str(more):
        assert bits(CONVOLUTION, other, one) == (6, 8)
    else:  # Equally specific: the later one.
        assert bits(CONVOLUTION, other, one) == (2, 8)


def test_exclusion_and_what_takes_it_back() -> None:
    assert bits(HEAD, {"match": "head*", "exclude": True}) == (0, 0)
    assert bits(CONVOLUTION, {"match": "head*", "exclude": True}) == (8, 8)
    assert bits(HEAD, {"match": "*", "exclude": True}, {"class": "Linear", "exclude": False}) == (8, 8)
    assert bits(HEAD, {"match": "*", "activations": {"bits": 0}}) == (8, 0)


def test_rules_that_match_nothing_are_found() -> None:
    own = section(
        {"match": "heads*", "exclude": True},
        {"class": "Conv2d", "exclude": True},
        {"match": "head*", "class": "Conv2d", "exclude": True},
    )
    assert [str(rule) for rule in idle(own.rules, [CONVOLUTION, HEAD])] == [
        "{match: heads*}",
        "{match: head*, class: Conv2d}",
    ]


@given(st.lists(st.sampled_from(["*", "group*", "group0.0.first", "*first", "head*"]), unique=True), st.randoms())
def test_the_order_of_rules_of_different_specificity_does_not_matter(globs: list[str], chance: Any) -> None:
    rules = [{"match": glob, "weights": {"bits": 2 + number}} for number, glob in enumerate(globs)]
    before = bits(CONVOLUTION, *rules)
    if "*first" in globs and "group*" in globs and "group0.0.first" not in globs:
        return  # As many letters in both: the later one wins.
    chance.shuffle(rules)
    assert bits(CONVOLUTION, *rules) == before


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"exclude": True}, "names no layers"),
        ({"match": "head*"}, "changes nothing"),
        ({"match": "head*", "weights": {"bits": 1}}, "2 to 8 bits"),
        ({"match": "head*", "weights": {"bits": 9}}, "less than or equal to 8"),
        ({"match": "head*", "weight": {"bits": 4}}, "Extra inputs"),
        ({"match": "head*", "accumulator_bits": 1}, "an accumulator has 2 to 32 bits"),
        ({"match": "head*", "accumulator_length": 8}, "does nothing without accumulator_bits"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(rule)


def test_hardware_has_rules_like_all_else() -> None:
    own = section(
        {"class": "Linear", "slice_bits": 2, "accumulator_bits": 0},
        {"match": "head.linear", "accumulator_length": 8},
        slice_bits=4,
        accumulator_length=64,
        accumulator_bits=12,
    )
    assert numbers_of(CONVOLUTION, own).hardware == Hardware(4, 64, 12)
    assert numbers_of(HEAD, own).hardware == Hardware(2, 8, 0)
    assert numbers_of(HEAD, section()).hardware == Hardware()


def test_a_length_needs_a_range() -> None:
    with pytest.raises(ValidationError, match="does nothing without accumulator_bits"):
        section(accumulator_length=8)
    assert section({"match": "head*", "accumulator_bits": 9}, accumulator_length=8).accumulator_length == 8


def test_class_and_match_must_both_hold() -> None:
    rule = QuantRule.model_validate({"match": "head*", "class": "Conv2d", "exclude": True})
    assert not is_match(rule, HEAD)
    assert not is_match(rule, CONVOLUTION)
    assert is_match(rule, Layer("head.first", frozenset({"Conv2d"})))
