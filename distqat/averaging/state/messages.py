"""What donors of committed state are asked, and what they answer, as bytes and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from distqat.averaging.state.snapshot import ChunkRef, Manifest
from distqat.errors import MessageError
from distqat.ids import PeerId, RunId, StageIndex
from distqat.pb import state_pb2 as pb
from distqat.rpc import mirror
from distqat.rpc.transport import Lane, Method
from distqat.wire import frames
from distqat.wire.frames import Chunk

SERVICE = "distqat.v1.State"
DESCRIBE = Method(SERVICE, "Describe")
FETCH = Method(SERVICE, "Fetch", Lane.BULK)
REPLAY = Method(SERVICE, "Replay", Lane.BULK)

T = TypeVar("T")


@dataclass(frozen=True)
class Describe:
    """Asks for the manifest of a state that has at least so many rounds behind it."""

    run: RunId
    stage: StageIndex
    round: int = 0


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
class KeptRound:
    """What a kept average is, without its payload."""

    round: int
    before: str
    digest: str
    members: tuple[PeerId, ...]
    codec: str


@dataclass(frozen=True)
class ReplayHeader:
    """The first frame of each round says what it was."""

    kept: KeptRound | None
    chunk: Chunk


_KINDS: dict[type, type[Message]] = {
    Describe: pb.DescribeRequest,
    Manifest: pb.Manifest,
    Fetch: pb.FetchRequest,
    ChunkRef: pb.ChunkRef,
    Replay: pb.ReplayRequest,
    ReplayHeader: pb.ReplayHeader,
}


def encode(message: object) -> bytes:
    """Any of the messages above as bytes."""
    return mirror.encode(message, _KINDS[type(message)])


def decode(kind: type[T], data: bytes | memoryview) -> T:
    """A message of that kind. Raises MessageError."""
    return mirror.decode(kind, data, _KINDS[kind])


def frame(header: ChunkRef | ReplayHeader, *payload: memoryview | bytes) -> bytes:
    """A header and the views of its bytes, as one message."""
    return frames.join(encode(header), *payload)


def unframe(kind: type[T], data: bytes | None) -> tuple[T, memoryview]:
    """Header and bytes. Raises MessageError, also when there is no further message."""
    if data is None:
        raise MessageError("the stream ended before everything was there")
    header, payload = frames.split(data)
    return decode(kind, header), payload
