"""The control service's messages: bytes to dataclasses and back, and its methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from distqat.ids import Endpoint, PeerId, RunId, Seat, StageIndex
from distqat.model.agreement import Verdict
from distqat.pb import control_pb2 as pb
from distqat.roles.checkpoint.words import Begin
from distqat.roles.orders import Order
from distqat.roles.status import ExpertStatus, PeerStatus, PipelineStatus
from distqat.rpc import mirror
from distqat.rpc.transport import Method
from distqat.timeline import Timeline, Timelines
from distqat.times import StepSummary

SERVICE = "distqat.v1.Control"
HELLO = Method(SERVICE, "Hello")
CONFIG = Method(SERVICE, "Config")
STATUS = Method(SERVICE, "Status")
SWARM = Method(SERVICE, "Swarm")
METRICS = Method(SERVICE, "Metrics")
TRACE = Method(SERVICE, "Trace")
ADD_ROLE = Method(SERVICE, "AddRole")
DROP_ROLE = Method(SERVICE, "DropRole")
DRAIN = Method(SERVICE, "Drain")
ASSIGN = Method(SERVICE, "Assign")
DRIVE = Method(SERVICE, "Drive")
FENCE = Method(SERVICE, "Fence")
LOST = Method(SERVICE, "Lost")

T = TypeVar("T")


@dataclass(frozen=True)
class HelloReply:
    """Who a daemon is."""

    peer: str
    version: str
    run: RunId | None
    roles: tuple[str, ...]
    observed: str


@dataclass(frozen=True)
class ConfigRequest:
    """Asks for the run's config; an empty digest means whichever the daemon has."""

    digest: str


@dataclass(frozen=True)
class ConfigReply:
    """The run's config as canonical JSON."""

    run: RunId
    json: str


@dataclass(frozen=True)
class StatusReply:
    """A daemon's status."""

    status: PeerStatus


@dataclass(frozen=True)
class SwarmReply:
    """The status of every peer in a daemon's directory, that daemon first."""

    peers: tuple[PeerStatus, ...]


@dataclass(frozen=True)
class MetricsRequest:
    """Asks for the metric lines after a serial."""

    after: int


@dataclass(frozen=True)
class MetricLine:
    """One metric line on the wire."""

    serial: int
    kind: str
    time: float
    labels: Mapping[str, str]
    values: Mapping[str, float]


@dataclass(frozen=True)
class MetricsReply:
    """Metric lines, oldest first."""

    metrics: tuple[MetricLine, ...]


MAX_SPANS = 4096
"""Spans in one answer; of a step with more only the first are told."""


@dataclass(frozen=True)
class TraceRequest:
    """Asks for the spans of some steps of a pipeline; `most` = 0: only the clock, and which steps there are."""

    pipeline: str
    first: int = 0
    last: int = 0
    most: int = 0


@dataclass(frozen=True)
class TraceSpan:
    """A `timeline.Span` on the wire."""

    kind: str
    begin: float
    end: float
    step: int
    microbatch: int
    way: str
    bytes: int
    raw: int


@dataclass(frozen=True)
class StepTrace:
    """A `timeline.StepSummary` on the wire."""

    step: int
    begin: float
    end: float
    compute: float
    round: float
    wait: float
    codec: float
    wire: float
    bytes: int
    raw: int

    @classmethod
    def of(cls, summary: StepSummary) -> StepTrace:
        """The same, both ways together."""
        return cls(
            step=summary.step,
            begin=summary.begin,
            end=summary.end,
            compute=summary.compute,
            round=summary.round,
            wait=summary.wait,
            codec=summary.codec,
            wire=summary.wire,
            bytes=summary.down.bytes + summary.up.bytes,
            raw=summary.down.raw + summary.up.raw,
        )


@dataclass(frozen=True)
class StageTrace:
    """One peer's part in a pipeline; `left_out` spans of the steps asked for were too many, or are forgotten."""

    name: str
    stage: int
    oldest: int
    newest: int
    steps: tuple[StepTrace, ...] = ()
    spans: tuple[TraceSpan, ...] = ()
    left_out: int = 0

    @classmethod
    def of(cls, timeline: Timeline, first: int, last: int, most: int) -> StageTrace:
        """What a timeline says of these steps, at most `most` spans."""
        oldest, newest = timeline.steps()
        if not most:
            return cls(timeline.name, timeline.stage, oldest, newest)
        summaries = timeline.summaries(first, last)
        spans = timeline.spans_of(first, last)
        told = spans[: min(most, MAX_SPANS)]
        forgotten = max(0, sum(summary.spans for summary in summaries) - sum(span.step > 0 for span in spans))
        return cls(
            name=timeline.name,
            stage=timeline.stage,
            oldest=oldest,
            newest=newest,
            steps=tuple(StepTrace.of(summary) for summary in summaries),
            spans=tuple(TraceSpan(*span) for span in told),
            left_out=forgotten + len(spans) - len(told),
        )


@dataclass(frozen=True)
class TraceReply:
    """What a daemon knows of these steps; all times are of its `clock`, read when the request came."""

    clock: float
    stages: tuple[StageTrace, ...]

    @classmethod
    def of(cls, timelines: Timelines, wanted: TraceRequest) -> TraceReply:
        """What a daemon's timelines say."""
        clock = timelines.clock()
        parts = timelines.find(wanted.pipeline)
        return cls(clock, tuple(StageTrace.of(part, wanted.first, wanted.last, wanted.most) for part in parts))


@dataclass(frozen=True)
class RoleRequest:
    """Asks a daemon to take or drop a role; `stage` pins an expert."""

    role: str
    stage: int | None = None


@dataclass(frozen=True)
class RoleReply:
    """Roles held now."""

    roles: tuple[str, ...]


@dataclass(frozen=True)
class DrainReply:
    """Seconds after which the daemon gives up waiting for its roles."""

    timeout: float


@dataclass(frozen=True)
class AssignRequest:
    """Asks an expert to take a stage, or (not seated) to become a spare, which may follow one."""

    run: RunId
    seated: bool
    stage: int
    follow: bool = False
    heir_of: str = ""

    @classmethod
    def of(cls, run: RunId, order: Order) -> AssignRequest:
        """The request for that order."""
        follow = order.follows is not None
        return cls(run, order.seat is not None, order.stage or 0, follow, order.heir_of or "")

    @property
    def order(self) -> Order:
        """What is asked for."""
        stage = StageIndex(self.stage) if self.seated or self.follow else None
        return Order(stage, self.seated or stage is None, PeerId(self.heir_of) if self.heir_of else None)


@dataclass(frozen=True)
class AssignReply:
    """What the expert does now."""

    expert: ExpertStatus


@dataclass(frozen=True)
class DriveRequest:
    """Asks a trainer to drive a route; an empty one stops the pipeline. In order: after the steps under way."""

    run: RunId
    pipeline: str
    epoch: int
    route: tuple[Seat, ...]
    in_order: bool = False
    begin: Begin | None = None


@dataclass(frozen=True)
class DriveReply:
    """What the trainer does on that pipeline now."""

    pipeline: PipelineStatus


@dataclass(frozen=True)
class FenceRequest:
    """Asks an expert to commit no further step of a pipeline; `step`: the last that any stage has, 0: not known."""

    run: RunId
    pipeline: str
    step: int
    verdict: Verdict


@dataclass(frozen=True)
class FenceReply:
    """What the expert has committed of it: last step, the claim that it was of, and what was decided of it."""

    step: int
    claim: int
    verdict: Verdict


@dataclass(frozen=True)
class LostRequest:
    """Tells a daemon that a peer is lost."""

    run: RunId
    peer: str
    endpoint: Endpoint
    reason: str


@dataclass(frozen=True)
class Empty:
    """A request that asks for nothing in particular."""


_KINDS: dict[type, type[Message]] = {
    HelloReply: pb.HelloReply,
    ConfigRequest: pb.ConfigRequest,
    ConfigReply: pb.ConfigReply,
    StatusReply: pb.StatusReply,
    SwarmReply: pb.SwarmReply,
    MetricsRequest: pb.MetricsRequest,
    MetricsReply: pb.MetricsReply,
    TraceRequest: pb.TraceRequest,
    TraceReply: pb.TraceReply,
    RoleRequest: pb.RoleRequest,
    RoleReply: pb.RoleReply,
    DrainReply: pb.DrainReply,
    AssignRequest: pb.AssignRequest,
    AssignReply: pb.AssignReply,
    DriveRequest: pb.DriveRequest,
    DriveReply: pb.DriveReply,
    FenceRequest: pb.FenceRequest,
    FenceReply: pb.FenceReply,
    LostRequest: pb.LostRequest,
    Empty: pb.StatusRequest,
}


def encode(value: Any) -> bytes:
    """A message of this service as bytes."""
    return mirror.encode(value, _KINDS[type(value)])


def decode(cls: type[T], data: bytes) -> T:
    """A message of this service from bytes. Raises MessageError."""
    return mirror.decode(cls, data, _KINDS[cls])
