"""A route: the chain of experts of a pipeline at one moment; its limits, and how a break of it is named. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distqat.config import RunConfig
from distqat.errors import DistqatError, RouteError
from distqat.ids import PeerId, PipelineId, Seat, StageIndex
from distqat.model.agreement import needs_norms
from distqat.sections import OptimizerSection, Precision
from distqat.wire_sections import WireSection


class HopError(RouteError):
    """A route broke at one peer: `peer` is the one at fault, `kind` the name of the error there."""

    def __init__(self, reason: str, peer: PeerId = PeerId(""), kind: str = "RouteError") -> None:  # noqa: B008
        super().__init__(reason)
        self.peer = peer
        self.kind = kind

    def again(self) -> HopError:
        """A fresh one that says the same, for another raise."""
        return HopError(self.reason, self.peer, self.kind)


def first_error(error: BaseException) -> DistqatError | None:
    """The first error of ours within a group, however deep; None when there is none."""
    if isinstance(error, DistqatError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for leaf in error.exceptions if (found := first_error(leaf)) is not None), None)
    return None


@dataclass(frozen=True)
class Route:
    """A pipeline's experts, stage 0 first; a new chain is a new epoch. Raises RouteError when it is not a chain."""

    pipeline: PipelineId
    epoch: int
    seats: tuple[Seat, ...]

    def __post_init__(self) -> None:
        fault = fault_of_seats(self.seats, StageIndex(0))
        if fault is not None:
            raise RouteError(f"pipeline {self.pipeline}: {fault}")
        if self.epoch < 1:
            raise RouteError(f"pipeline {self.pipeline}: route epochs are counted from 1, not {self.epoch}")

    def __str__(self) -> str:
        return f"pipeline {self.pipeline} epoch {self.epoch}: " + ", ".join(str(seat) for seat in self.seats)


def fault_of_seats(seats: Sequence[Seat], first: StageIndex) -> str | None:
    """Why these are not the seats of a chain from stage `first` on, or None when they are."""
    if not seats:
        return "a route needs at least one seat"
    stages = [seat.stage for seat in seats]
    if stages != list(range(first, first + len(seats))):
        return f"the seats are of stages {stages}, not of every stage from {first} on"
    if len({seat.peer for seat in seats}) < len(seats):
        return "one peer has two seats"
    return None


@dataclass(frozen=True)
class Limits:
    """How much, how long, and what else the run's settings say of its routes; the same at every peer."""

    max_message: int = 1 << 30
    """Bytes of the largest message that is taken."""
    open: float = 10.0
    """Seconds in which a whole route must open."""
    stall: float = 3.0
    """Seconds without a sign from below while an answer is owed. Work that takes longer says so (`Busy`)."""
    settle: float = 30.0
    """Seconds that one piece of work may take, an outer round among them, before it counts as silence."""
    ping: float = 1.0
    """Seconds between two measurements of a link; the first ones come sooner."""
    max_in_flight: int = 64
    """Microbatches that a stage holds at most."""
    wire: WireSection = field(default_factory=WireSection)
    """Codecs and compression."""
    has_offsets: bool = False
    """Whether learned codes count from a learned offset."""
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    """For clipping."""
    precision: Precision = "fp32"
    """For the loss scale."""

    @classmethod
    def of(cls, config: RunConfig) -> Limits:
        """Limits from the run's settings."""
        stall = config.lease.min
        return cls(
            max_message=config.wire.max_message,
            open=max(10.0, 2 * stall),
            stall=stall,
            settle=3 * config.sync.max_wait + stall,
            max_in_flight=config.pipeline.max_in_flight,
            wire=config.wire,
            has_offsets=config.quant.has_offsets,
            optimizer=config.optimizer,
            precision=config.train.precision,
        )

    @property
    def needs_norms(self) -> bool:
        """Whether the norm of the whole gradient decides how a step is applied."""
        return needs_norms(self.optimizer, self.precision)


def patience(seconds: float, num_stages: int, stage: int) -> float:
    """How long to wait for the peer of `stage`: from `seconds` for the last to half as much again for the first.

    Whoever stands next to a silent peer must lose patience first, or the wrong hop is named.
    """
    return seconds * (1.0 + (num_stages - 1 - stage) / (2.0 * num_stages))
