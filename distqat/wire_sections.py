"""The section `wire`: how tensors travel, and what each stage sends."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distqat.sections import CodecName, Section

ActivationCodec = Literal["none", "bf16", "fp16", "int8", "int4", "learned"]
"""`learned`: the integer codes of a quantizer that is trained with the stage."""

Per = Literal["tensor", "channel"]


def _not_learned(value: Any) -> Any:
    if value == "learned":
        raise ValueError("learned is a codec of activations; only these go through a quantizer that learns its step")
    return value


class LearnedCodes(Section):
    """In which integers codec `learned` writes activations."""

    bits: int = Field(8, ge=2, le=8, description="Of a code; codes are packed.")
    per: Per = Field("tensor", description="One step for the tensor, or one for each channel.")
    signed: bool = Field(True, description="Whether half of the codes are below zero; false: what is below is lost.")


class LearnedChange(Section):
    """What an override says of these integers; what it leaves out stays."""

    bits: int | None = Field(None, ge=2, le=8, description="Of a code; codes are packed.")
    per: Per | None = Field(None, description="One step for the tensor, or one for each channel.")
    signed: bool | None = Field(None, description="Whether half of the codes are below zero.")


class WireOverride(Section):
    """Other codecs for what some stages send."""

    stages: str = Field(min_length=1, description="Glob of stage names, such as 'gpt/0' or '*/1'.")
    activations: ActivationCodec | None = Field(None, description="Codec of what such a stage sends down.")
    gradients: CodecName | None = Field(None, description="Codec of what such a stage sends up.")
    learned: LearnedChange = Field(default_factory=LearnedChange, description="What is different of learned codes.")

    _is_known = field_validator("gradients", mode="before")(_not_learned)

    @model_validator(mode="after")
    def _says_something(self) -> WireOverride:
        if self.activations is None and self.gradients is None and self.learned == LearnedChange():
            raise ValueError("names a codec neither of activations nor of gradients")
        return self


class WireSection(Section):
    """How tensors travel."""

    inputs: CodecName = Field(
        "none", description="Codec of the samples on their way to stage 0; targets travel exactly."
    )
    activations: ActivationCodec = Field(
        "none", description="Codec of activations: none, bf16, fp16, int8, int4, or learned, which changes the model."
    )
    gradients: CodecName = Field("none", description="Codec of activation gradients: none, bf16, fp16, int8 or int4.")
    learned: LearnedCodes = Field(
        default_factory=LearnedCodes, description="Codec learned: bits (2 to 8), per (tensor or channel), signed."
    )
    overrides: list[WireOverride] = Field(
        default_factory=list,
        description="Other codecs by stage: {stages: GLOB, activations: ..., gradients: ..., learned: ...}.",
    )
    compression: Literal["auto", "on", "off"] = Field(
        "auto", description="zstd after the codec, of tensors from 64 KiB on; auto: where it is measured to save time."
    )
    max_message: int = Field(1 << 30, ge=1 << 20, description="Largest message that is taken, in bytes.")

    _are_known = field_validator("inputs", "gradients", mode="before")(_not_learned)

    @property
    def can_learn(self) -> bool:
        """Whether some stage may send learned codes."""
        return "learned" in (self.activations, *(own.activations for own in self.overrides))

    def activations_of(self, stage: str) -> ActivationCodec:
        """Codec of what the stage of this name sends down."""
        codecs = [own.activations for own in self._of(stage) if own.activations is not None]
        return codecs[-1] if codecs else self.activations

    def gradients_of(self, stage: str) -> CodecName:
        """Codec of what the stage of this name sends up."""
        codecs = [own.gradients for own in self._of(stage) if own.gradients is not None]
        return codecs[-1] if codecs else self.gradients

    def learned_of(self, stage: str) -> LearnedCodes | None:
        """The integers in which the stage of this name sends activations; None where it has another codec."""
        if self.activations_of(stage) != "learned":
            return None
        codes = self.learned
        for own in self._of(stage):
            codes = codes.model_copy(update=own.learned.model_dump(exclude_none=True))
        return codes

    def _of(self, stage: str) -> Iterator[WireOverride]:
        """The overrides that speak of a stage; a later one wins, as later lines of a config do."""
        return (own for own in self.overrides if fnmatchcase(stage, own.stages))
