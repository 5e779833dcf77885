"""What the flows know of the network: calls and streams of bytes between endpoints.

Two implementations: `grpc.py` (real) and `local.py` (in memory, for tests and simulations). A flow describes its
service with `Method`s, serves it as a `Service`, and turns messages into bytes in its own `messages.py`. What may go
wrong is in `distqat.errors`; nothing else leaves a transport.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from distqat.errors import DeadlineError
from distqat.ids import Endpoint

PROTOCOL_VERSION = 4
"""Peers of another version refuse each other by name."""


class Lane(enum.Enum):
    """Each has a connection of its own to a peer, so what fills one of them cannot hold up another."""

    CONTROL = "control"
    """Small messages that somebody waits for: leases, votes, records."""
    HOP = "hop"
    """Large ones that somebody waits for: microbatches. They go before bulk."""
    BULK = "bulk"
    """Large ones that can wait: slices of rounds, state. They are paced (`pacing.py`)."""


@dataclass(frozen=True)
class Method:
    """One remote procedure: `service` in full ("distqat.v1.Pipeline"), `name` ("Hop")."""

    service: str
    name: str
    lane: Lane = Lane.CONTROL

    @property
    def path(self) -> str:
        """As gRPC writes it."""
        return f"/{self.service}/{self.name}"

    @property
    def flow(self) -> str:
        """The service's last word in lower case, by which bytes are counted: "pipeline"."""
        return self.service.rsplit(".", 1)[-1].lower()

    def __str__(self) -> str:
        return f"{self.service.rsplit('.', 1)[-1]}.{self.name}"


@dataclass(frozen=True)
class Deadline:
    """A moment of the running loop's clock by which something must be done; handed down from caller to callee."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """That many seconds from now."""
        return cls(asyncio.get_running_loop().time() + seconds)

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - asyncio.get_running_loop().time())

    def sooner(self, seconds: float) -> Deadline:
        """The sooner of this one and that many seconds from now."""
        return min(self, Deadline.after(seconds), key=lambda deadline: deadline.at)

    def check(self, what: str) -> None:
        """Raise DeadlineError if it has passed."""
        if self.left() <= 0:
            raise DeadlineError(f"{what}: the deadline has passed")


@dataclass(frozen=True)
class Caller:
    """Who is asking, as far as the transport knows."""

    address: str
    """Where the call came from, for people; a peer proves who it is by signatures, not by this."""
    deadline: Deadline | None
    """By when the caller wants the answer; None when it set no limit (long-lived streams)."""


class Stream(Protocol):
    """One end of a bidirectional stream of byte messages.

    The stream ends with its handler, whatever the caller sends or finishes at the same time: the caller receives all
    that the handler sent before, and then None if it returned, or the error that it raised. (Unless the connection
    breaks, the server closes, or the caller sends for more than a second without receiving what is there.)
    """

    async def send(self, data: bytes, more: bool = False) -> None:
        """Send one message; waits while the other side is not keeping up. Raises RpcError.

        After the handler has ended it soon raises the handler's error or UnreachableError; what is sent in the moment
        before is lost in silence. If it is cancelled the message is sent whole or not at all.
        With `more` it is enough that there is room for the next message, which can be made while this one leaves. What
        goes wrong with this one is then raised by a later send. Before a stream ends there must be one without `more`,
        or `finish`, or the return of the handler.
        """
        ...

    async def receive(self) -> bytes | None:
        """The next message, or None when the other side has finished sending. If it is cancelled, nothing is lost.

        Raises RpcError, or whatever DistqatError the handler at the other side raised. A handler whose caller has left
        is cancelled; it never sees None for that.
        """
        ...

    async def finish(self) -> None:
        """Say that no more will be sent; receiving goes on. A handler finishes by returning.

        Harmless while or after the handler ends: it raises nothing, and takes nothing from what can be received.
        """
        ...


CallHandler = Callable[[bytes, Caller], Awaitable[bytes]]
StreamHandler = Callable[[Stream, Caller], Awaitable[None]]


@dataclass(frozen=True)
class Service:
    """The answering side of one flow: handlers by the bare method name. Errors that they raise reach the caller."""

    name: str
    calls: Mapping[str, CallHandler] = field(default_factory=dict)
    streams: Mapping[str, StreamHandler] = field(default_factory=dict)


class Server(Protocol):
    """A listening endpoint. Services come and go while it listens, as roles do."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens; the port is the real one even if 0 was asked for."""
        ...

    def add(self, service: Service) -> None:
        """Answer for this service; replaces one of the same name."""
        ...

    async def remove(self, name: str) -> None:
        """Stop answering for it; its running handlers are cancelled and joined."""
        ...


@dataclass(frozen=True)
class Bytes:
    """Message bytes of one flow, both lanes together."""

    sent: int = 0
    received: int = 0


class Transport(Protocol):
    """Reaches other peers, and lets them reach this one."""

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        """Ask once and wait for the answer. Raises RpcError or whatever DistqatError the handler raised."""
        ...

    def stream(
        self, to: Endpoint, method: Method, deadline: Deadline | None = None
    ) -> AbstractAsyncContextManager[Stream]:
        """Open a stream; it ends with the block, and breaks at the deadline if there is one.

        Entering waits until the other side has accepted it (for a few seconds at most), and raises what `call` raises.
        """
        ...

    def serve(self, listen: Endpoint) -> AbstractAsyncContextManager[Server]:
        """Listen; at the end handlers are cancelled and joined. Raises CannotListenError."""
        ...

    def traffic(self) -> Mapping[str, Bytes]:
        """Message bytes so far by flow, both directions, as caller and as server."""
        ...

    def uplink(self) -> float:
        """Bytes per second that this host's link was measured to carry out; 0: not known, nothing filled it."""
        ...

    def downlink(self) -> float:
        """Bytes per second that this host's link was seen to carry in, at least; 0: not known."""
        ...
