"""Both transports behind one face, so that one suite can hold them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from distqat.errors import DistqatError, find
from distqat.ids import Endpoint
from distqat.rpc.grpc import open_transport
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Deadline, Method, Server, Service, Stream, Transport
from tests.support import run, run_virtual

NAME = "distqat.v1.Trial"
ECHO = Method(NAME, "Echo")
FAIL = Method(NAME, "Fail")
HANG = Method(NAME, "Hang")
LEFT = Method(NAME, "Left")
CHAT = Method(NAME, "Chat")
SINK = Method(NAME, "Sink")
BREAK = Method(NAME, "Break")
STALL = Method(NAME, "Stall")
LAST_WORDS = Method(NAME, "LastWords")

LAST_WORDS_SIZE = 20_000
"""Bytes of each of the last messages: together they fit under way while nobody reads."""


@dataclass(eq=False)
class Trial:
    """A service with a handler for each thing that may happen, and what it has seen."""

    began: int = 0
    cancelled: int = 0
    joined: int = 0
    chatted: int = 0
    callers: list[Caller] = field(default_factory=list)
    last_words: list[str] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def service(self, name: str = NAME) -> Service:
        calls = {"Echo": self.echo, "Fail": self.fail, "Hang": self.hang, "Left": self.left}
        streams = {"Chat": self.chat, "Sink": self.sink, "Break": self.break_off, "Stall": self.stall}
        streams["LastWords"] = self.say_last_words
        return Service(name, calls, streams)

    async def echo(self, request: bytes, caller: Caller) -> bytes:
        self.callers.append(caller)
        return request

    async def fail(self, request: bytes, caller: Caller) -> bytes:
        kind, _, message = request.decode().partition(":")
        known = find(kind)
        raise KeyError(message) if known is None else known(message)

    async def hang(self, request: bytes, caller: Caller) -> bytes:
        await self._wait()
        return b""

    async def left(self, request: bytes, caller: Caller) -> bytes:
        assert caller.deadline is not None
        return str(caller.deadline.left()).encode()

    async def chat(self, stream: Stream, caller: Caller) -> None:
        self.callers.append(caller)
        self.started.set()
        try:
            while (message := await stream.receive()) is not None:
                await stream.send(message)
            self.chatted += 1
        except DistqatError as error:
            self.last_words.append(type(error).__name__)
            raise

    async def sink(self, stream: Stream, caller: Caller) -> None:
        self.started.set()
        await self.release.wait()
        total = 0
        while (message := await stream.receive()) is not None:
            total += len(message)
        await stream.send(str(total).encode())

    async def break_off(self, stream: Stream, caller: Caller) -> None:
        first = await stream.receive()
        assert first is not None
        await stream.send(first)
        await self.fail(first, caller)

    async def say_last_words(self, stream: Stream, caller: Caller) -> None:
        """Sends three messages and ends, with the error that the first message names if it does."""
        first = await stream.receive() or b""
        for index in range(3):
            await stream.send(bytes([65 + index]) * LAST_WORDS_SIZE)
        self.ended.set()
        if first:
            await self.fail(first, caller)

    async def stall(self, stream: Stream, caller: Caller) -> None:
        await self._wait()

    async def _wait(self) -> None:
        self.began += 1
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0.01)
            self.joined += 1
            self.ended.set()
            raise


@dataclass(frozen=True)
class Pair:
    """A peer that asks and one that answers."""

    alice: Transport
    bob: Transport
    server: Server
    trial: Trial

    @property
    def to(self) -> Endpoint:
        return self.server.endpoint

    async def echo(self, request: bytes) -> bytes:
        return await self.alice.call(self.to, ECHO, request, Deadline.after(5))


@dataclass(frozen=True)
class World:
    """One transport: how to run on it, and how to open it."""

    name: str
    run: Callable[[Coroutine[Any, Any, None]], None]
    listen: Endpoint
    max_message: int = 2 << 20

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[tuple[Transport, Transport]]:
        if self.name == "local":
            network = Network(delay=0.002)
            yield network.transport("alice", self.max_message), network.transport("bob", self.max_message)
            return
        async with open_transport(self.max_message) as alice, open_transport(self.max_message) as bob:
            yield alice, bob

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        async with self.transports() as (alice, bob), self.serving(bob) as (server, trial):
            yield Pair(alice, bob, server, trial)

    @asynccontextmanager
    async def serving(self, bob: Transport) -> AsyncIterator[tuple[Server, Trial]]:
        async with bob.serve(self.listen) as server:
            trial = Trial()
            server.add(trial.service())
            yield server, trial


WORLDS = [
    World("grpc", run, Endpoint("127.0.0.1", 0)),
    World("local", run_virtual, Endpoint("bob", 0)),
]


@asynccontextmanager
async def chat(pair: Pair, method: Method = CHAT, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
    async with pair.alice.stream(pair.to, method, deadline) as stream:
        yield stream


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()
