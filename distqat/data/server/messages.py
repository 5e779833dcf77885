"""What a trainer and the data server say to each other, as bytes and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message

from distqat.data.server.layout import Column
from distqat.errors import MessageError
from distqat.ids import RunId
from distqat.pb import feed_pb2 as pb
from distqat.rpc import mirror
from distqat.rpc.transport import Lane, Method
from distqat.wire import frames
from distqat.wire.payload import Payload

SERVICE = "distqat.v1.Feed"
TAKE = Method(SERVICE, "Take", Lane.HOP)

MAX_COLUMNS = 64
"""Of a sample."""

MAX_REASON = 400
"""Characters of a fault that are told."""

T = TypeVar("T")


@dataclass(frozen=True)
class Hello:
    """Who asks: a trainer of that run."""

    run: RunId


@dataclass(frozen=True)
class Wanted:
    """Samples that lie in one slot; `mapped`: where they lie is enough."""

    serial: int
    held_out: bool
    begin: int
    end: int
    mapped: bool


@dataclass(frozen=True)
class Release:
    """Nobody reads there any more."""

    lease: int


@dataclass(frozen=True)
class Ping:
    """Is the other side there? And yes, it is."""


@dataclass(frozen=True)
class Ask:
    """One message of a trainer; one of the fields is there."""

    hello: Hello | None = None
    want: Wanted | None = None
    release: Release | None = None
    ping: Ping | None = None

    def encode(self) -> bytes:
        """As it travels."""
        return mirror.encode(self, pb.FeedAsk)

    @classmethod
    def decode(cls, data: bytes) -> Ask:
        """Raises MessageError."""
        ask = _one_of(cls, data, pb.FeedAsk)
        if ask.hello is not None and not (ask.hello.run.name and ask.hello.run.digest):
            raise MessageError("the message does not say for which run it is")
        return ask


@dataclass(frozen=True)
class Welcome:
    """What there is, and how to find out whether it can be mapped."""

    door: str
    nonce: bytes = field(repr=False)
    samples: int
    held_out: int
    rows: int
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Place:
    """Where samples lie, until the lease is released."""

    serial: int
    lease: int
    block: str
    row: int
    brief: bool


@dataclass(frozen=True)
class Piece:
    """Where a part of the samples' bytes belongs."""

    serial: int
    offset: int
    total: int


@dataclass(frozen=True)
class Fault:
    """Why there are no samples."""

    serial: int
    reason: str


@dataclass(frozen=True)
class Told:
    """One message of the server; one of the fields is there."""

    welcome: Welcome | None = None
    place: Place | None = None
    piece: Piece | None = None
    fault: Fault | None = None
    pong: Ping | None = None

    def encode(self, payload: Payload | None = None) -> bytes:
        """As it travels, with its part of the samples."""
        return frames.join(mirror.encode(self, pb.FeedHeader), *(payload.parts if payload is not None else ()))

    @classmethod
    def decode(cls, data: bytes) -> tuple[Told, memoryview]:
        """And the part of the samples. Raises MessageError."""
        header, payload = frames.split(data)
        told = _one_of(cls, header, pb.FeedHeader)
        if (welcome := told.welcome) is not None and not (
            welcome.samples and welcome.held_out and welcome.rows and len(welcome.columns) <= MAX_COLUMNS
        ):
            raise MessageError("a data server without samples")
        return told, payload


def _one_of(cls: type[T], data: bytes | memoryview, kind: type[Message]) -> T:
    message = mirror.decode(cls, data, kind)
    if sum(part is not None for part in vars(message).values()) != 1:
        raise MessageError(f"a {kind.__name__} must hold one message")
    return message
