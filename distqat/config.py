"""The one settings tree: file, environment and flags, in that order of growing precedence.

Everything but the sections `daemon` and `monitor` belongs to the run: it travels to every peer that joins, and its
digest says whether two peers work for the same run. An unknown key is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from distqat import settings_file
from distqat.data_sections import DatasetSection
from distqat.errors import ConfigError
from distqat.ids import RunId
from distqat.quant_sections import QuantSection
from distqat.sections import (
    CheckpointSection,
    DaemonSection,
    DataSection,
    LeaseSection,
    ModelSection,
    MonitorSection,
    OptimizerSection,
    PipelineSection,
    PlanSection,
    RunSection,
    SyncSection,
    TrainSection,
)
from distqat.wire_sections import LearnedChange, LearnedCodes, WireSection

ENV_PREFIX = "DISTQAT_"


class _RunSections(BaseModel):
    """The sections that all peers of a run share."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    dataset: DatasetSection = Field(default_factory=DatasetSection)
    quant: QuantSection = Field(default_factory=QuantSection)
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    sync: SyncSection = Field(default_factory=SyncSection)
    train: TrainSection = Field(default_factory=TrainSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    pipeline: PipelineSection = Field(default_factory=PipelineSection)
    plan: PlanSection = Field(default_factory=PlanSection)
    lease: LeaseSection = Field(default_factory=LeaseSection)
    wire: WireSection = Field(default_factory=WireSection)

    @model_validator(mode="after")
    def _data_are_named(self) -> Self:
        missing = self.dataset.missing() if self.data.source == "datasets" else ""
        if missing:
            raise ValueError(f"data.source is datasets: {missing}")
        return self

    @model_validator(mode="after")
    def _waits_nest(self) -> Self:
        if self.lease.min >= self.sync.max_wait:
            raise ValueError(
                f"lease.min ({self.lease.min} s) must be less than sync.max_wait ({self.sync.max_wait} s), "
                "or a round gives up before a dead sibling is noticed"
            )
        return self

    @model_validator(mode="after")
    def _first_steps_are_averaged(self) -> Self:
        """An outer step with momentum from the run's anchor to what the first data give would go far beyond that."""
        if self.quant.learns_from_inputs and not self.sync.warmup_steps:
            raise ValueError(
                f"quant.method {self.quant.method} takes the first steps of activations from data, which only a round "
                "of the warm-up can average; let sync.warmup_steps be at least 1, or quant.activations.bits be 0"
            )
        if self.wire.can_learn and not self.sync.warmup_steps:
            raise ValueError(
                "wire: codec learned takes its first steps from data, which only a round of the warm-up can average; "
                "let sync.warmup_steps be at least 1"
            )
        return self

    @model_validator(mode="after")
    def _learned_codes_have_a_boundary(self) -> Self:
        """Settings of codes that no stage sends would do nothing."""
        senders = [f"{self.model.name}/{index}" for index in range(self.model.stages - 1)]
        learned = [name for name in senders if self.wire.learned_of(name) is not None]
        if self.wire.activations == "learned" and not senders:
            raise ValueError("wire.activations is learned, but a model of one stage sends none (model.stages)")
        if self.wire.learned != LearnedCodes() and not learned:
            raise ValueError("wire.learned is for activations with codec learned, and no stage sends such")
        for override in self.wire.overrides:
            is_used = any(fnmatchcase(name, override.stages) for name in learned)
            if override.learned != LearnedChange() and not is_used:
                raise ValueError(f"wire.overrides: no stage of '{override.stages}' sends activations as learned")
        return self

    @model_validator(mode="after")
    def _codecs_pay(self) -> Self:
        """One 16-bit type as the other: not a byte less, and what is beyond its range would stop the run."""
        other = {"bf16": "fp16", "fp16": "bf16"}.get(self.train.precision)
        chosen = [(where.activations, where.gradients) for where in self.wire.overrides]
        for codecs in [(self.wire.activations, self.wire.gradients), *chosen]:
            if other is not None and other in codecs:
                raise ValueError(
                    f"wire: codec {other} makes {self.train.precision} numbers no smaller, and spoils some"
                )
        return self

    @model_validator(mode="after")
    def _globs_match(self) -> Self:
        """A glob that no stage has would do nothing, without a word."""
        names = [f"{self.model.name}/{index}" for index in range(self.model.stages)]
        overrides = [("wire.overrides", override.stages) for override in self.wire.overrides]
        for setting, glob in [*overrides, *(("pipeline.recompute", glob) for glob in self.pipeline.recompute)]:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ValueError(f"{setting}: no stage is called '{glob}'; there are {', '.join(names[:8])}")
        return self

    @model_validator(mode="after")
    def _overrides_have_something_to_send(self) -> Self:
        """The last stage sends no activations, and the first one no gradients."""
        names = [f"{self.model.name}/{index}" for index in range(self.model.stages)]
        for override in self.wire.overrides:
            for what, senders, silent in (("activations", names[:-1], "last"), ("gradients", names[1:], "first")):
                said = getattr(override, what) is not None
                if said and not any(fnmatchcase(name, override.stages) for name in senders):
                    raise ValueError(
                        f"wire.overrides: the {silent} stage sends no {what}, and '{override.stages}' names no other"
                    )
        return self


class RunConfig(_RunSections):
    """What travels to every peer of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def canonical(self) -> str:
        """As JSON with sorted keys; what travels and what the digest is taken of."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def id(self) -> RunId:
        """The run's identity: its name and the digest of this config."""
        return RunId(self.run.name, hashlib.sha256(self.canonical().encode()).hexdigest()[:32])

    @classmethod
    def from_canonical(cls, text: str) -> RunConfig:
        """Read what `canonical` wrote; raises ConfigError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None


class Settings(_RunSections, BaseSettings):
    """The whole tree of one daemon: the run's sections and the machine's own."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, yaml_file=None
    )

    monitor: MonitorSection = Field(default_factory=MonitorSection)
    daemon: DaemonSection = Field(default_factory=DaemonSection)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, settings_file.FileSource(settings_cls)

    def run_config(self) -> RunConfig:
        """The part that travels."""
        return RunConfig.model_validate({name: getattr(self, name) for name in RunConfig.model_fields})


def load(file: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """The settings from a YAML file, the environment (`DISTQAT_SECTION__KEY`) and `section.key=value` overrides.

    Raises ConfigError, whose message names the key at fault.
    """
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX) and name[len(ENV_PREFIX) :].split("__")[0].lower() not in Settings.model_fields
    )
    if unknown:
        raise ConfigError(f"environment variable {unknown[0]}: there is no such section")
    token = settings_file.FileSource.values.set(settings_file.read(file) if file is not None else {})
    try:
        return Settings(**settings_file.nest(overrides))
    except ValidationError as error:
        where = f"{file}: " if file is not None else ""
        raise ConfigError(where + _explain(error)) from None
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from None
    finally:
        settings_file.FileSource.values.reset(token)


def _explain(error: ValidationError) -> str:
    """One line for each fault, with the key in words."""
    lines = []
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"]) or "settings"
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'")
        else:
            # What concerns several sections has no one value to show.
            got = f" (got {fault['input']!r:.60})" if fault["loc"] else ""
            lines.append(f"{key}: {fault['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def template() -> str:
    """Every setting with its meaning and default, as YAML; `configs/template.yaml` is exactly this."""
    return settings_file.template(Settings)
