"""What donors of committed state are asked, and what they answer; `averaging.messages` makes bytes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from distqat.averaging.state.snapshot import ChunkRef, Manifest
from distqat.ids import PeerId, RunId, StageIndex, StepRef
from distqat.pb import state_pb2 as pb
from distqat.rpc.transport import Lane, Method
from distqat.wire.frames import Chunk

SERVICE = "distqat.v1.State"
DESCRIBE = Method(SERVICE, "Describe")
FETCH = Method(SERVICE, "Fetch", Lane.BULK)
REPLAY = Method(SERVICE, "Replay", Lane.BULK)
AWAIT = Method(SERVICE, "Await")


@dataclass(frozen=True)
class Describe:
    """Asks for the manifest of a state that has at least so many rounds behind it."""

    run: RunId
    stage: StageIndex
    round: int = 0
    digest: str = ""
    """The one that is looked for; who keeps several gives that one if it is there."""


@dataclass(frozen=True)
class Fetch:
    """Asks for one chunk of the state of that digest."""

    run: RunId
    stage: StageIndex
    digest: str
    chunk: ChunkRef


@dataclass(frozen=True)
class Replay:
    """Asks for the averages of all rounds after the state of that round and digest."""

    run: RunId
    stage: StageIndex
    round: int
    digest: str


@dataclass(frozen=True)
class Await:
    """Asks to be told when another state than that of this digest is committed; empty: what is."""

    run: RunId
    stage: StageIndex
    digest: str = ""


@dataclass(frozen=True)
class News:
    """What is committed."""

    round: int
    digest: str


@dataclass(frozen=True)
class KeptRound:
    """What a kept average is, without its payload."""

    round: int
    before: str
    digest: str
    members: tuple[PeerId, ...]
    codec: str
    origins: tuple[StepRef, ...] = ()


@dataclass(frozen=True)
class ReplayHeader:
    """The first frame of each round says what it was."""

    kept: KeptRound | None
    chunk: Chunk


KINDS: Mapping[type, type[Message]] = {
    Describe: pb.DescribeRequest,
    Manifest: pb.Manifest,
    Fetch: pb.FetchRequest,
    ChunkRef: pb.ChunkRef,
    Replay: pb.ReplayRequest,
    ReplayHeader: pb.ReplayHeader,
    Await: pb.AwaitRequest,
    News: pb.AwaitReply,
}
"""Encoded and decoded like all other messages of flow B, by `averaging.messages`."""
