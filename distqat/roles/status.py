"""What daemons say of themselves when they are asked: frozen, plain, printable. They mirror control.proto."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from distqat.data.claims import Claim
from distqat.ids import NOWHERE, Endpoint, RunId, Seat
from distqat.roles.checkpoint.words import CheckpointStatus
from distqat.timeline import Timeline
from distqat.times import DOWN, UP


@dataclass(frozen=True)
class Receipt:
    """What a committed round says of itself; `bytes` and `seconds` are this member's."""

    round: int = 0
    contributors: tuple[str, ...] = ()
    samples: int = 0
    bytes: int = 0
    seconds: float = 0.0
    digest: str = ""
    lost: tuple[str, ...] = ()
    fragments: tuple[int, ...] = ()
    codec: str = ""
    bits: float = 0.0
    clipped: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class LinkStatus:
    """One direction of one hop, as its sender knows it; bytes are those of the last steps."""

    way: str = ""
    bytes: int = 0
    raw: int = 0
    rate: float = 0.0
    compressed: bool = False


@dataclass(frozen=True)
class StepTimes:
    """Where the time of the last steps went, in seconds; `compute`, `round` and `wait` add up to all of it."""

    seconds: float = 0.0
    compute: float = 0.0
    round: float = 0.0
    wait: float = 0.0
    codec: float = 0.0
    wire: float = 0.0
    links: tuple[LinkStatus, ...] = ()

    @classmethod
    def of(cls, timeline: Timeline) -> StepTimes | None:
        """Of the last steps of a timeline; None before the first."""
        recent = timeline.recent()
        if not recent.step:
            return None
        links = tuple(
            LinkStatus(way, sent.bytes, sent.raw, timeline.links[way].rate, timeline.links[way].compressed)
            for way, sent in ((DOWN, recent.down), (UP, recent.up))
            if way in timeline.links
        )
        return cls(recent.seconds, recent.compute, recent.round, recent.wait, recent.codec, recent.wire, links)


@dataclass(frozen=True)
class ExpertStatus:
    """Facts of an expert."""

    seated: bool = False
    stage: int = 0
    stage_name: str = ""
    pipeline: str = ""
    step: int = 0
    round: int = 0
    digest: str = ""
    samples_per_second: float = 0.0
    parameters: int = 0
    receipts: tuple[Receipt, ...] = ()
    ready: bool = False
    pinned: bool = False
    times: StepTimes | None = None
    beside: bool = False
    replayed: int = 0
    follows: int | None = None
    warm: bool = False
    uplink: float = 0.0
    downlink: float = 0.0


@dataclass(frozen=True)
class PipelineStatus:
    """Facts of a pipeline, from its trainer (loss, speed) or its client (plan, reason)."""

    pipeline: str = ""
    epoch: int = 0
    route: tuple[Seat, ...] = ()
    step: int = 0
    loss: float = math.nan
    samples_per_second: float = 0.0
    phase: str = "forming"
    reason: str = ""
    evaluation: float = math.nan
    replayed: int = 0
    losses: tuple[float, ...] = ()
    microbatches: int = 0
    microbatch_seconds: float = 0.0
    claims: tuple[Claim, ...] = ()
    """What its trainer has claimed and not heard to be booked."""
    booked: tuple[Claim, ...] = ()
    """The last that were."""


@dataclass(frozen=True)
class Loss:
    """A peer that was lost, and why; `how`: by a broken connection, by silence, or stuck."""

    peer: str = ""
    kind: str = ""
    reason: str = ""
    how: str = ""


@dataclass(frozen=True)
class Lease:
    """The lease of a live peer, as its client sees it: renewed `age` seconds ago, over after `seconds`."""

    peer: str = ""
    age: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class RunStatus:
    """Facts of a run, as its client knows them."""

    committed: int = 0
    budget: int = 0
    open: int = 0
    stages: tuple[str, ...] = ()
    finished: bool = False
    doubled: int = 0
    lost: int = 0
    pipelines: tuple[PipelineStatus, ...] = ()
    losses: tuple[Loss, ...] = ()
    leases: tuple[Lease, ...] = ()
    skipped: int = 0


@dataclass(frozen=True)
class RoleStatus:
    """What one role does, and why it is in that phase."""

    role: str = ""
    phase: str = "waiting"
    reason: str = ""
    expert: ExpertStatus | None = None
    pipelines: tuple[PipelineStatus, ...] = ()
    run: RunStatus | None = None
    checkpoints: CheckpointStatus | None = None


@dataclass(frozen=True)
class Traffic:
    """Message bytes of one flow."""

    flow: str = ""
    sent: int = 0
    received: int = 0


@dataclass(frozen=True)
class PeerStatus:
    """What one daemon does."""

    peer: str = ""
    endpoint: Endpoint = NOWHERE
    version: str = ""
    run: RunId | None = None
    roles: tuple[RoleStatus, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    idle_seconds: float = 0.0
    known_peers: int = 0
    reason: str = ""
    reachable: bool = True
    work_seconds: float = 0.0

    def role(self, name: str) -> RoleStatus | None:
        """The status of that role, if the daemon holds it."""
        return next((role for role in self.roles if role.role == name), None)


@dataclass(frozen=True)
class SwarmStatus:
    """What every peer in a daemon's directory does, the asked daemon first."""

    peers: tuple[PeerStatus, ...] = field(default_factory=tuple)

    def experts(self) -> list[tuple[PeerStatus, ExpertStatus]]:
        """Every expert with its daemon."""
        return [(peer, role.expert) for peer in self.peers for role in peer.roles if role.expert is not None]

    def pipelines(self) -> list[PipelineStatus]:
        """Every pipeline as its trainer sees it; those without a trainer as the client planned them."""
        driven = {line.pipeline: line for peer in self.peers for role in peer.roles for line in role.pipelines}
        run = self.run()
        planned = {line.pipeline: line for line in run.pipelines} if run is not None else {}
        return [line for _, line in sorted({**planned, **driven}.items())]

    def run(self) -> RunStatus | None:
        """The run as its client sees it."""
        runs = [role.run for peer in self.peers for role in peer.roles if role.run is not None]
        # A client that stands by has no books yet.
        return max(runs, key=lambda run: run.budget, default=None)
