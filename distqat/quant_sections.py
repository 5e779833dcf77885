"""The section `quant`: in which numbers the layers of a model compute, and which layers."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from distqat.sections import Section

QuantMethod = Literal["off", "lsq", "lsq+", "minmax", "percentile"]

Per = Literal["tensor", "channel"]


def _bits(value: int | None) -> int | None:
    if value == 1:
        raise ValueError("a format has 2 to 8 bits; 0 leaves the numbers as they are")
    return value


def _range(value: int | None) -> int | None:
    if value == 1:
        raise ValueError("an accumulator has 2 to 32 bits; 0: it holds every sum")
    return value


class NumberFormat(Section):
    """In which integers values are written."""

    bits: int = Field(8, ge=0, le=8, description="2 to 8; 0: not quantised.")
    per: Per = Field("tensor", description="One step for the tensor, or one for each channel.")
    signed: bool = Field(True, description="Whether half of the codes are below zero.")

    _has_room = field_validator("bits")(_bits)


class NumberChange(Section):
    """What a rule says of a format; what it leaves out stays."""

    bits: int | None = Field(None, ge=0, le=8, description="2 to 8; 0: not quantised.")
    per: Per | None = Field(None, description="One step for the tensor, or one for each channel.")
    signed: bool | None = Field(None, description="Whether half of the codes are below zero.")

    _has_room = field_validator("bits")(_bits)


class QuantRule(Section):
    """Other numbers for some layers."""

    model_config = ConfigDict(populate_by_name=True)

    match: str | None = Field(None, min_length=1, description="Glob of the layer's path in the whole model.")
    kind: str | None = Field(None, alias="class", min_length=1, description="Name of its class, or of one above.")
    exclude: bool | None = Field(None, description="Whether such a layer stays as it is.")
    weights: NumberChange = Field(default_factory=NumberChange, description="What is different of the weights.")
    activations: NumberChange = Field(default_factory=NumberChange, description="What is different of what enters.")
    slice_bits: int | None = Field(None, ge=0, le=8, description="Bits of a slice of a weight; 0: in one piece.")
    accumulator_length: int | None = Field(None, ge=0, description="Products that are summed at once; 0: all.")
    accumulator_bits: int | None = Field(None, ge=0, le=32, description="Bits of such a sum, which saturates; 0: all.")

    _has_range = field_validator("accumulator_bits")(_range)

    @model_validator(mode="after")
    def _says_something(self) -> QuantRule:
        if self.match is None and self.kind is None:
            raise ValueError("names no layers: write match: GLOB, class: NAME, or both")
        said = self.model_dump(exclude_none=True, exclude={"match", "kind"})
        if not any(value != {} for value in said.values()):
            raise ValueError(
                "changes nothing: write exclude, weights, activations, slice_bits or accumulator_length or _bits"
            )
        return self

    def __str__(self) -> str:
        named = [f"match: {self.match}" if self.match else "", f"class: {self.kind}" if self.kind else ""]
        return "{" + ", ".join(part for part in named if part) + "}"


class QuantSection(Section):
    """Quantization-aware training: layers compute with rounded weights and inputs; see docs/quantise.md."""

    method: QuantMethod = Field(
        "off", description="off; lsq or lsq+: learned step sizes; minmax or percentile: steps from observed ranges."
    )
    weights: NumberFormat = Field(
        default_factory=NumberFormat, description="Numbers of the weights: bits (2 to 8; 0: as they are), per, signed."
    )
    activations: NumberFormat = Field(
        default_factory=NumberFormat, description="Numbers of what enters a layer; signed: false where it is never < 0."
    )
    rules: list[QuantRule] = Field(
        default_factory=list, description="Other numbers for some layers, or exclude; the most specific rule wins."
    )
    strict: bool = Field(True, description="A rule that no layer of the model matches is an error.")
    step_rate: float = Field(0.1, gt=0, le=1, description="Of the learning rate, for step sizes and offsets.")
    percentile: float = Field(
        99.9, gt=50, le=100, description="Method percentile: share of the magnitudes within the range, in percent."
    )

    slice_bits: int = Field(
        0, ge=0, le=8, description="Hardware: weights are held as slices of so many bits; 0: in one piece."
    )
    accumulator_length: int = Field(
        0, ge=0, description="Hardware: so many products are summed before the sum saturates; 0: all of an output's."
    )
    accumulator_bits: int = Field(
        0, ge=0, le=32, description="Hardware: bits of such a sum, signed, which saturates; 0: it holds every sum."
    )

    _has_range = field_validator("accumulator_bits")(_range)

    @model_validator(mode="after")
    def _length_bounds_something(self) -> QuantSection:
        lengths = [self.accumulator_length, *(rule.accumulator_length for rule in self.rules)]
        widths = [self.accumulator_bits, *(rule.accumulator_bits for rule in self.rules)]
        if any(lengths) and not any(widths):
            raise ValueError("accumulator_length does nothing without accumulator_bits, the range that saturates")
        return self

    @property
    def has_offsets(self) -> bool:
        """Whether activations have a learned offset."""
        return self.method == "lsq+"

    @property
    def learns_from_inputs(self) -> bool:
        """Whether there are steps of activations that begin with the first data."""
        bits = [self.activations.bits, *(rule.activations.bits for rule in self.rules)]
        return self.method in ("lsq", "lsq+") and any(bits)
