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
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from distqat import settings_file
from distqat.errors import ConfigError
from distqat.ids import Endpoint, RunId

ENV_PREFIX = "DISTQAT_"

CodecName = Literal["none", "bf16", "fp16", "int8", "int4"]
"""What `wire.codecs` can do; a test holds the two together."""

Precision = Literal["fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A group of settings; unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)


class RunSection(Section):
    """What the run is called, and where its randomness begins."""

    name: str = Field("digits", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Name of the run; part of its identity.")
    seed: int = Field(7, ge=0, description="Seed of initial numbers, sample order and dropout.")


class ModelSection(Section):
    """What is trained, and how it is cut."""

    name: str = Field("resnet", description="Model of the zoo: mlp, resnet, resnet18 or gpt.")
    stages: int = Field(2, ge=1, le=1024, description="Number of stages the model is cut into.")
    cuts: list[int] = Field(
        default_factory=list,
        description="Block indices at which stages 1, 2, ... begin; empty: balanced by estimated cost.",
    )
    options: dict[str, int | float | str | bool | list[int]] = Field(
        default_factory=dict, description="Sizes of the model (width, depth, dropout, ...); see docs/models.md."
    )

    @model_validator(mode="after")
    def _cuts_fit(self) -> ModelSection:
        if self.cuts and (len(self.cuts) != self.stages - 1 or sorted(set(self.cuts)) != self.cuts or self.cuts[0] < 1):
            raise ValueError(f"cuts must be {self.stages - 1} growing block indices, the first at least 1")
        return self


class DataSection(Section):
    """What is fed."""

    source: str = Field("digits", description="Data set: digits or pydocs.")
    batch: int = Field(32, ge=1, description="Samples in the batch of one step of one pipeline.")
    microbatches: int = Field(4, ge=1, description="Microbatches into which a batch is split.")
    adaptive: bool = Field(
        True, description="Pipelines of unequal speed take more or fewer microbatches a step, to reach rounds together."
    )
    sequence: int = Field(64, ge=2, description="Tokens in a sample of a text source.")

    @model_validator(mode="after")
    def _batch_splits(self) -> DataSection:
        if self.microbatches > self.batch:
            raise ValueError(f"microbatches ({self.microbatches}) must not exceed batch ({self.batch})")
        return self


class OptimizerSection(Section):
    """The inner optimizer of every stage."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd (with momentum).")
    learning_rate: float = Field(2e-3, gt=0, description="Inner learning rate.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay (adamw), or L2 penalty (sgd).")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    nesterov: bool = Field(True, description="Whether the momentum of sgd is Nesterov's.")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="After the warm-up: constant, or a cosine from the learning rate to its final fraction."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Linear warm-up of the learning rate, in batches of the whole run; 0: none."
    )
    final_fraction: float = Field(0.1, ge=0, le=1, description="Of the learning rate, at the end of a cosine.")
    clip_norm: float = Field(
        0.0, ge=0, description="Largest norm of the gradient of the whole model, over all stages; 0: not clipped."
    )


class SyncSection(Section):
    """The outer rounds between siblings (DiLoCo)."""

    inner_steps: int = Field(10, ge=1, description="Steps of a pipeline between two rounds after the warm-up.")
    warmup_steps: int = Field(60, ge=0, description="First rounds, one after every step, that average plainly.")
    outer_learning_rate: float = Field(0.5, gt=0, description="Outer learning rate of Nesterov momentum.")
    outer_momentum: float = Field(0.8, ge=0, lt=1, description="Outer momentum.")
    max_wait: float = Field(10.0, gt=0, description="Longest wait of a round for a live sibling, in seconds.")


class TrainSection(Section):
    """How long, and how closely watched."""

    epochs: float = Field(12.0, gt=0, description="Budget of the run: passes over the training samples.")
    evaluate_every: int = Field(0, ge=0, description="Steps between evaluations on held-out data; 0: only at the end.")
    precision: Precision = Field(
        "fp32", description="Of the computation: fp32, bf16, or fp16 with loss scaling; parameters are fp32 always."
    )


class PipelineSection(Section):
    """How a pipeline computes."""

    recompute: list[str] = Field(
        default_factory=list,
        description="Stages, by glob such as 'gpt/*', that compute their forward again instead of keeping activations.",
    )
    max_in_flight: int = Field(
        64, ge=1, le=4096, description="Microbatches that a stage may hold at most, however slow the links are."
    )


class PlanSection(Section):
    """Who hosts what."""

    max_pipelines: int = Field(64, ge=1, description="Pipelines that are formed at most.")
    cooldown: float = Field(2.0, ge=0, description="Seconds after a change before a peer is moved without need.")


class LeaseSection(Section):
    """How long a peer may be silent."""

    min: float = Field(
        3.0, ge=0.2, description="Shortest lease in seconds; slow machines get longer ones by themselves."
    )


class WireOverride(Section):
    """Other codecs for what some stages send."""

    stages: str = Field(min_length=1, description="Glob of stage names, such as 'gpt/0' or '*/1'.")
    activations: CodecName | None = Field(None, description="Codec of what such a stage sends down.")
    gradients: CodecName | None = Field(None, description="Codec of what such a stage sends up.")

    @model_validator(mode="after")
    def _says_something(self) -> WireOverride:
        if self.activations is None and self.gradients is None:
            raise ValueError("names a codec neither of activations nor of gradients")
        return self


class WireSection(Section):
    """How tensors travel."""

    inputs: CodecName = Field(
        "none", description="Codec of the samples on their way to stage 0; targets travel exactly."
    )
    activations: CodecName = Field("none", description="Codec of activations: none, bf16, fp16, int8 or int4.")
    gradients: CodecName = Field("none", description="Codec of activation gradients: none, bf16, fp16, int8 or int4.")
    overrides: list[WireOverride] = Field(
        default_factory=list, description="Other codecs by stage: {stages: GLOB, activations: ..., gradients: ...}."
    )
    compression: Literal["auto", "on", "off"] = Field(
        "auto", description="zstd after the codec, of tensors from 64 KiB on; auto: where it is measured to save time."
    )
    max_message: int = Field(1 << 30, ge=1 << 20, description="Largest message that is taken, in bytes.")


class MonitorSection(Section):
    """The monitor of this machine; not part of the run."""

    interval: float = Field(1.0, gt=0, description="Seconds between two looks at the swarm.")
    wandb: Literal["auto", "online", "offline", "off"] = Field(
        "auto", description="Weights & Biases: online, offline, off; auto: online if WANDB_API_KEY is set, else off."
    )
    wandb_project: str = Field("distqat", description="Project in Weights & Biases.")


class DaemonSection(Section):
    """This machine's daemon; not part of the run."""

    listen: str = Field("0.0.0.0:0", description="Address to listen on, HOST:PORT; port 0: any free one.")
    announce: str = Field("", description="Address that other peers dial; empty: found out by itself.")
    state_dir: str = Field("~/.local/state/distqat", description="Folder for the key and the known peers.")
    log_dir: str = Field("logs", description="Folder for logs and metrics.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="Device of the expert: cpu, cuda, cuda:1.")
    threads: int = Field(0, ge=0, description="Threads of one torch operation on the CPU; 0: torch decides.")
    drain_timeout: float = Field(20.0, gt=0, description="Seconds that draining may take.")

    @model_validator(mode="after")
    def _addresses_parse(self) -> DaemonSection:
        for name in ("listen", "announce"):
            text = getattr(self, name)
            if text:
                try:
                    Endpoint.parse(text)
                except ConfigError as error:
                    raise ValueError(f"{name}: {error.reason}") from None
        return self


class _RunSections(BaseModel):
    """The sections that all peers of a run share."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    sync: SyncSection = Field(default_factory=SyncSection)
    train: TrainSection = Field(default_factory=TrainSection)
    pipeline: PipelineSection = Field(default_factory=PipelineSection)
    plan: PlanSection = Field(default_factory=PlanSection)
    lease: LeaseSection = Field(default_factory=LeaseSection)
    wire: WireSection = Field(default_factory=WireSection)

    @model_validator(mode="after")
    def _waits_nest(self) -> Self:
        if self.lease.min >= self.sync.max_wait:
            raise ValueError(
                f"lease.min ({self.lease.min} s) must be less than sync.max_wait ({self.sync.max_wait} s), "
                "or a round gives up before a dead sibling is noticed"
            )
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
