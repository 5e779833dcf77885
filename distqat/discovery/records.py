"""What peers say of themselves, and the signed envelope in which it travels. Knows no bytes on the wire."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from distqat.ids import Endpoint, PeerId, PipelineId, RunId, StageIndex

FIRST = StageIndex(0)


@dataclass(frozen=True)
class PeerRecord:
    """That a daemon is there; `run` is None while it knows none.

    `committed` says that the run has committed a round, as far as the daemon was ever told.
    """

    endpoint: Endpoint
    roles: tuple[str, ...] = ()
    run: RunId | None = None
    version: str = ""
    committed: bool = False


@dataclass(frozen=True)
class ConfigRecord:
    """That a peer hands out the run's config."""

    run: RunId
    endpoint: Endpoint


@dataclass(frozen=True)
class ExpertRecord:
    """What an expert does now; without a seat it is a spare, and `stage` counts only if it is pinned.

    `follows` is the stage of which a spare keeps a copy, complete if it is `warm`.
    """

    endpoint: Endpoint
    seated: bool = False
    stage: StageIndex = FIRST
    ready: bool = False
    step: int = 0
    round: int = 0
    digest: str = ""
    pinned: bool = False
    reason: str = ""
    follows: StageIndex | None = None
    warm: bool = False


@dataclass(frozen=True)
class Pace:
    """How fast a pipeline is: seconds for each microbatch, measured, and how many make its steps now."""

    pipeline: PipelineId
    seconds: float
    microbatches: int


@dataclass(frozen=True)
class TrainerRecord:
    """What a trainer does now; `paces` are of the pipelines that it has measured."""

    endpoint: Endpoint
    pipelines: tuple[PipelineId, ...] = ()
    step: int = 0
    reason: str = ""
    paces: tuple[Pace, ...] = ()


@dataclass(frozen=True)
class ClientRecord:
    """That a client is there; the one that is planning decides who hosts what."""

    endpoint: Endpoint
    planning: bool = False
    reason: str = ""


Record = PeerRecord | ConfigRecord | ExpertRecord | TrainerRecord | ClientRecord
R = TypeVar("R", PeerRecord, ConfigRecord, ExpertRecord, TrainerRecord, ClientRecord)


def substance(record: Record) -> Record:
    """The record without its progress and reason: what others must learn of quickly when it changes."""
    if isinstance(record, ExpertRecord):
        # The first round is news: from then on nobody may begin the run anew.
        return replace(record, step=0, round=min(record.round, 1), digest="", reason="")
    if isinstance(record, TrainerRecord):
        return replace(record, step=0, reason="", paces=())
    if isinstance(record, ClientRecord):
        return replace(record, reason="")
    return record


@dataclass(frozen=True)
class Body:
    """What is signed. `ttl` is in seconds from receipt; a tombstone withdraws the author's statement."""

    key: str
    sequence: int
    ttl: float
    tombstone: bool = False
    value: bytes = b""


@dataclass(frozen=True)
class SignedRecord:
    """A serialised Body with its author's key and signature; `remaining` seconds to live, as the sender counts them."""

    body: bytes
    public_key: bytes
    signature: bytes
    remaining: float


@dataclass(frozen=True)
class VerifiedRecord:
    """A live record whose signature was checked; `remaining` seconds to live, as this node counts them."""

    key: str
    author: PeerId
    sequence: int
    value: bytes
    remaining: float
