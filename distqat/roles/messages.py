"""What a daemon is asked about itself, and its roles: bytes to dataclasses and back, and the methods.

The same service answers what is in `orders/messages.py`, `trace/messages.py`, `events/messages.py` and
`checkpoint/messages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from distqat.ids import RunId
from distqat.pb import control_pb2 as pb
from distqat.roles.status import PeerStatus
from distqat.rpc import mirror
from distqat.rpc.transport import Method

SERVICE = "distqat.v1.Control"
HELLO = Method(SERVICE, "Hello")
CONFIG = Method(SERVICE, "Config")
STATUS = Method(SERVICE, "Status")
SWARM = Method(SERVICE, "Swarm")
METRICS = Method(SERVICE, "Metrics")
ADD_ROLE = Method(SERVICE, "AddRole")
DROP_ROLE = Method(SERVICE, "DropRole")
DRAIN = Method(SERVICE, "Drain")

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
    RoleRequest: pb.RoleRequest,
    RoleReply: pb.RoleReply,
    DrainReply: pb.DrainReply,
    Empty: pb.StatusRequest,
}


def encode(value: Any) -> bytes:
    """A message of this service as bytes."""
    return mirror.encode(value, _KINDS[type(value)])


def decode(cls: type[T], data: bytes) -> T:
    """A message of this service from bytes. Raises MessageError."""
    return mirror.decode(cls, data, _KINDS[cls])
