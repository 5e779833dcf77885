"""The sections of the settings tree: every setting with its meaning, its bounds and its default.

`config.py` puts them together into a run's config and a daemon's settings.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distqat.errors import ConfigError
from distqat.ids import Endpoint

CodecName = Literal["none", "bf16", "fp16", "int8", "int4"]
"""What `wire.codecs` can do; a test holds the two together."""

RoundCodec = Literal["auto", "none", "bf16", "int8", "int4", "int2"]
"""How contributions of a round and their average may travel."""

Precision = Literal["fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A group of settings; unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)


class RunSection(Section):
    """What the run is called, and where its randomness begins."""

    name: str = Field(
        "digits", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$", description="Name of the run; part of its identity."
    )
    seed: int = Field(7, ge=0, description="Seed of initial numbers, sample order and dropout.")


class ModelSection(Section):
    """What is trained, and how it is cut."""

    name: str = Field(
        "resnet", description="Model of the zoo, such as resnet18 or gpt2, or your own; see docs/models.md."
    )
    stages: int = Field(2, ge=1, le=1024, description="Number of stages the model is cut into.")
    cuts: list[int] = Field(
        default_factory=list,
        description="Block indices at which stages 1, 2, ... begin; empty: balanced by estimated cost.",
    )
    options: dict[str, int | float | str | bool | list[int]] = Field(
        default_factory=dict, description="Sizes of the model (width, depth, dropout, ...); see docs/models.md."
    )
    pretrained: str = Field(
        "", description="Directory (on every peer) or hub name of the numbers to begin with; empty: fresh ones."
    )

    @model_validator(mode="after")
    def _cuts_fit(self) -> ModelSection:
        if self.cuts and (len(self.cuts) != self.stages - 1 or sorted(set(self.cuts)) != self.cuts or self.cuts[0] < 1):
            raise ValueError(f"cuts must be {self.stages - 1} growing block indices, the first at least 1")
        return self


class DataSection(Section):
    """What is fed."""

    source: str = Field("digits", description="Data set: digits, pydocs, or datasets: what `dataset` says.")
    batch: int = Field(32, ge=1, description="Samples in the batch of one step of one pipeline.")
    microbatches: int = Field(4, ge=1, description="Microbatches into which a batch is split.")
    adaptive: bool = Field(
        True, description="Pipelines of unequal speed take more or fewer microbatches a step, to reach rounds together."
    )
    sequence: int = Field(64, ge=2, description="Tokens in a sample of a text source.")
    server: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Samples come from a process beside the client (on), or each trainer reads them; auto: "
        "on, but for digits and pydocs.",
    )
    workers: int = Field(2, ge=1, le=256, description="Processes of the data server that make samples.")
    ring_mib: int = Field(
        256, ge=1, le=1 << 20, description="Shared memory in which the data server makes samples ahead, in MiB."
    )

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

    inner_steps: int = Field(
        10, ge=1, description="Steps of a pipeline between two rounds of the same fragment after the warm-up."
    )
    warmup_steps: int = Field(60, ge=0, description="First rounds, one after every step, that average plainly.")
    ramp_rounds: int = Field(
        0,
        ge=0,
        description="Rounds of each fragment after the warm-up, over which steps between and momentum grow to theirs.",
    )
    outer_learning_rate: float = Field(0.5, gt=0, description="Outer learning rate of Nesterov momentum.")
    outer_momentum: float = Field(0.8, ge=0, lt=1, description="Outer momentum.")
    fragments: int = Field(
        1, ge=1, le=1024, description="Parts of a stage that synchronise in turn; layers are dealt out to them."
    )
    overlap: int = Field(
        0, ge=0, description="Steps that go on while a round runs (tau of Streaming DiLoCo); 0: training waits for it."
    )
    merge: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the local values that is kept when an overlapped round is merged (alpha).",
    )
    eager: bool = Field(
        False, description="Beside a round steps begin where its own part leads, and keep all; overlap may last longer."
    )
    codec: RoundCodec = Field(
        "int8",
        description="Codec of the rounds: none, bf16, int8, int4, int2, or auto: by measured links and `budget`.",
    )
    error_feedback: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = Field(
        "auto",
        description="Share of what a lossy codec loses that goes into the next round; auto: half with int2, else none.",
    )
    budget: float = Field(
        0.1, gt=0, le=1, description="Codec auto: share of the time between two rounds that the transfer may take."
    )
    clip: float = Field(
        3.0, ge=0, description="Longest contribution, in medians of the group's; longer ones are scaled down. 0: any."
    )
    kept_rounds: int = Field(
        4, ge=0, le=256, description="Committed averages that are kept, so that who missed them can replay them."
    )
    max_wait: float = Field(10.0, gt=0, description="Longest wait of a round for a live sibling, in seconds.")

    @property
    def round_steps(self) -> int:
        """Steps of a pipeline between two rounds of a stage, after the warm-up; the fragments take turns."""
        return max(1, round(self.inner_steps / self.fragments))

    @model_validator(mode="after")
    def _overlap_fits(self) -> SyncSection:
        if self.fragments > self.inner_steps:
            raise ValueError(
                f"fragments ({self.fragments}) must not exceed inner_steps ({self.inner_steps}): "
                "each is to synchronise every inner_steps steps, one round at a time"
            )
        most = self.round_steps if self.eager else self.round_steps - 1
        if self.overlap > most:
            bound = "must not exceed" if self.eager else "must be less than"
            raise ValueError(
                f"overlap ({self.overlap}) {bound} the steps between two rounds, inner_steps / fragments "
                f"({self.inner_steps} / {self.fragments}, so {self.round_steps})"
            )
        if self.eager and not self.overlap:
            raise ValueError(f"eager needs an overlap: 1 to {self.round_steps} steps, the most to hide a whole round")
        if self.merge and not self.overlap:
            raise ValueError("merge needs an overlap: without one no step is taken beside a round")
        if self.merge and self.eager:
            raise ValueError("merge does not go with eager, which keeps all that is learned beside a round")
        return self

    @model_validator(mode="after")
    def _codec_fits(self) -> SyncSection:
        if self.codec != "auto" and self.budget != SyncSection.model_fields["budget"].default:
            raise ValueError(f"budget is for codec auto, which measures what it may send; codec is {self.codec}")
        if self.codec == "none" and self.error_feedback not in ("auto", 0):
            raise ValueError("codec none loses nothing that error_feedback could feed back")
        return self


class TrainSection(Section):
    """How long, and how closely watched."""

    epochs: float = Field(12.0, gt=0, description="Budget of the run: passes over the training samples.")
    evaluate_every: int = Field(0, ge=0, description="Steps between evaluations on held-out data; 0: only at the end.")
    precision: Precision = Field(
        "fp32", description="Of the computation: fp32, bf16, or fp16 with loss scaling; parameters are fp32 always."
    )


class CheckpointSection(Section):
    """What a run that was killed goes on from; where it lies, and how many are kept, each machine says for itself."""

    steps: int = Field(
        100, ge=0, description="Steps of a pipeline, about, from one checkpoint to the next; 0: no checkpoints."
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
    followers: bool = Field(True, description="Spares keep warm copies of the stages that they may have to take.")
    copy_seconds: float = Field(
        2.0, ge=0, description="Between two copies that a warm spare takes of what a seat has learned since; 0: none."
    )


class LeaseSection(Section):
    """How long a peer may be silent."""

    min: float = Field(
        3.0, ge=0.2, description="Shortest lease in seconds; slow machines get longer ones by themselves."
    )


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
    checkpoint_dir: str = Field("", description="Folder for checkpoints; empty: checkpoints, in the folder of the key.")
    checkpoints_kept: int = Field(3, ge=1, description="Newest checkpoints of each stage that are kept.")
    log_dir: str = Field("logs", description="Folder for logs and metrics.")
    data_port: int = Field(
        0, ge=0, le=65535, description="Port of the data server, if this machine's client starts one; 0: any free one."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="Device of the expert: cpu, cuda, cuda:1.")
    threads: int = Field(0, ge=0, description="Threads of one torch operation on the CPU; 0: torch decides.")
    drain_timeout: float = Field(20.0, gt=0, description="Seconds that draining may take.")
    own_models: list[str] = Field(
        default_factory=list,
        description="Classes, by glob such as 'mylab.models:*', that may be imported and run when a run names them.",
    )

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
