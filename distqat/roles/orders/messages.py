"""What a client, or who has lost a peer, tells other daemons: the messages of these methods of `Control`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from distqat.ids import Endpoint, PeerId, RunId, Seat, StageIndex
from distqat.model.agreement import Verdict
from distqat.pb import control_pb2 as pb
from distqat.roles.checkpoint.words import Begin
from distqat.roles.messages import SERVICE
from distqat.roles.orders.order import Order
from distqat.roles.status import ExpertStatus, PipelineStatus
from distqat.rpc import mirror
from distqat.rpc.transport import Method

ASSIGN = Method(SERVICE, "Assign")
DRIVE = Method(SERVICE, "Drive")
FENCE = Method(SERVICE, "Fence")
LOST = Method(SERVICE, "Lost")

T = TypeVar("T")


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


_KINDS: dict[type, type[Message]] = {
    AssignRequest: pb.AssignRequest,
    AssignReply: pb.AssignReply,
    DriveRequest: pb.DriveRequest,
    DriveReply: pb.DriveReply,
    FenceRequest: pb.FenceRequest,
    FenceReply: pb.FenceReply,
    LostRequest: pb.LostRequest,
}


def encode(value: Any) -> bytes:
    """One of these messages as bytes."""
    return mirror.encode(value, _KINDS[type(value)])


def decode(cls: type[T], data: bytes) -> T:
    """One of these messages from bytes. Raises MessageError."""
    return mirror.decode(cls, data, _KINDS[cls])
