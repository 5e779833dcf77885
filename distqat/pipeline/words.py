"""What neighbours on a route say to each other. Pure: how it becomes bytes is in `messages.py`.

Each is called as its message in `proto/distqat/v1/pipeline.proto`, and so are its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distqat.ids import MicrobatchId, PeerId, PipelineId, RunId, Seat, StageIndex
from distqat.model.agreement import LossScale, Verdict
from distqat.pipeline.hop_codecs import HopCodecs
from distqat.wire.tensors import TensorHeader

AS_IT_IS = Verdict(1.0, LossScale())
"""Gradients are applied as they are: no clipping, no loss scale."""

EXACT = HopCodecs()
"""Nothing is rounded."""

NOBODY = PeerId("")


def stamp() -> float:
    """When the message left, by its sender's clock; the hop writes it (see `wire/linkrate.py`)."""
    return field(default=0.0, compare=False)


@dataclass(frozen=True)
class Open:
    """Down: opens a hop, and with it the rest of the route. `seats` begin with the receiver.

    `verdict` is that of `step`; before the first step it says with which loss scale to begin.
    """

    run: RunId
    pipeline: PipelineId
    epoch: int
    step: int
    seats: tuple[Seat, ...]
    sender: PeerId = NOBODY
    codecs: HopCodecs = EXACT
    verdict: Verdict = AS_IT_IS


@dataclass(frozen=True)
class Opened:
    """Up: the route is open to its end, and `step` is committed as `verdict` says."""

    step: int
    verdict: Verdict = AS_IT_IS


@dataclass(frozen=True)
class Microbatch:
    """Down: inputs of a stage for one microbatch, and the targets for the last stage."""

    step: int
    index: int
    count: int
    batch_samples: int
    train: bool
    samples: int
    tensors: tuple[TensorHeader, ...] = ()
    progress: float = 0.0
    """Part of the run's budget, 0 to 1, that lay before the step; the same for all its microbatches."""
    sent: float = stamp()
    claim: int = 0
    """On the run's samples, which the batch was cut from; 0: none."""
    warmup: float = 0.0
    """Part of the run's budget that warms the learning rate up; the same for all microbatches."""

    @property
    def id(self) -> MicrobatchId:
        """Its name on the route."""
        return MicrobatchId(self.step, self.index)


@dataclass(frozen=True)
class Gradient:
    """Up: gradient of one microbatch's inputs, with a step's last one that of the tied tensor; from stage 0 to the
    trainer without tensors."""

    step: int
    index: int
    tensors: tuple[TensorHeader, ...] = ()
    square_norms: tuple[float, ...] = ()
    """Of the last microbatch of a step, where norms are needed: of the whole step, by block from the sender down."""
    sums: Mapping[str, float] = field(default_factory=dict)
    """What the last stage says of the microbatch: "loss" and metrics; one message less than an Outcome beside it."""
    sent: float = stamp()

    @property
    def id(self) -> MicrobatchId:
        """Its name on the route."""
        return MicrobatchId(self.step, self.index)


@dataclass(frozen=True)
class Outcome:
    """Up: loss and metrics of one microbatch of an evaluation."""

    step: int
    index: int
    sums: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> MicrobatchId:
        """Its name on the route."""
        return MicrobatchId(self.step, self.index)


@dataclass(frozen=True)
class Commit:
    """Down: the step is complete, apply it as stage 0 has decided."""

    step: int
    samples: int
    verdict: Verdict = AS_IT_IS
    round: bool = False
    """Whether an outer round follows in every stage."""


@dataclass(frozen=True)
class Committed:
    """Up, from stage 0: the step is committed, `seconds` after its first forward began there; no round lies between."""

    step: int
    verdict: Verdict = AS_IT_IS
    seconds: float = 0.0


@dataclass(frozen=True)
class Settle:
    """Down: agree on an anchor with the siblings now."""

    serial: int


@dataclass(frozen=True)
class Settled:
    """Up: all stages from here down have settled."""

    serial: int


@dataclass(frozen=True)
class Busy:
    """Up: no answer yet, but `stage` is at work: it computes, agrees with its siblings, or takes in a long message."""

    stage: StageIndex


@dataclass(frozen=True)
class Ping:
    """Down: how long is the way? `slowest`: seconds of a microbatch at the slowest place from the sender up."""

    serial: int
    slowest: float = 0.0
    link_rate: float = 0.0
    """Bytes per second at which the link brings the sender what it is sent; 0: not known."""
    sent: float = stamp()


@dataclass(frozen=True)
class Pong:
    """Up: answers a ping at once. Seconds: a microbatch at the slowest place from the sender down; what the sender
    spends on a microbatch's tensors of this hop, both ways; the round trips of the hops below, handling included."""

    serial: int
    slowest: float = 0.0
    handling: float = 0.0
    round_trips: tuple[float, ...] = ()
    link_rate: float = 0.0
    """As in a Ping."""
    sent: float = stamp()


@dataclass(frozen=True)
class Fault:
    """Up: the route is broken at `peer`; `kind` is the name of the error's class."""

    peer: PeerId
    kind: str
    reason: str


Message = (
    Open | Opened | Microbatch | Gradient | Outcome | Commit | Committed | Settle | Settled | Busy | Ping | Pong | Fault
)


def payload_bytes(message: Message) -> int:
    """Bytes of payload that belong to the message."""
    if isinstance(message, Microbatch | Gradient):
        return sum(header.bytes for header in message.tensors)
    return 0
