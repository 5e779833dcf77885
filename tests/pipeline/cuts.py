"""Cuts at points that have names: every message of every hop, as it leaves and when it has come, and every piece of
work of every stage, before and after.

A run without cuts shows what points there are; a run with some of them is compared with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from distqat.ids import Endpoint
from distqat.model.stage import Stage
from distqat.pipeline.messages import from_header
from distqat.pipeline.words import Message
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Method, Service, Stream, StreamHandler, Transport
from distqat.rpc.wrapped import WrappedStream, WrappedTransport
from distqat.wire import frames

When = Literal["before", "after"]

TURNS = 10
"""Of the event loop, after a cut: until everybody has learned of it."""


@dataclass(frozen=True)
class Point:
    """A moment in the life of a route."""

    where: str
    """A hop ("trainer>expert0") or a stage ("stage 1")."""
    when: When
    """Of a message: it leaves and is lost, or it has come and the hop breaks. Of work: it begins, it is done."""
    what: str
    """A message ("Gradient 2.1", a chunk of it "Gradient 2.1 at 1024") or a piece of work ("backward 2.1")."""
    turn: int = 1
    """The how-manyth time that this happens."""

    def __str__(self) -> str:
        return f"{self.where} {self.when} {self.what}" + (f" (time {self.turn})" if self.turn > 1 else "")

    @property
    def is_certain(self) -> bool:
        """Whether it comes in every run: what is said from time to time may not."""
        return self.what not in ("Ping", "Pong") and not self.what.startswith("Busy")


@dataclass(frozen=True)
class Cut:
    """Hops that break at a point, all at once."""

    at: Point
    hops: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.at} breaks {' and '.join(self.hops)}"


class Scissors:
    """Watches the points go by, and cuts at those that are planned, one after the other."""

    def __init__(self, network: Network, plan: Sequence[Cut] = ()) -> None:
        self.seen: list[Point] = []
        self.marks: list[int] = []  # How many points had been seen at each cut.
        self._network = network
        self._plan = deque(plan)
        self._turns: Counter[tuple[str, When, str]] = Counter()

    @property
    def is_done(self) -> bool:
        """Whether all that was planned has been cut."""
        return not self._plan

    def passes(self, where: str, when: When, what: str) -> bool:
        """A point goes by; true if something is to be cut there, which `cut` does."""
        self._turns[where, when, what] += 1
        point = Point(where, when, what, self._turns[where, when, what])
        self.seen.append(point)
        return bool(self._plan) and self._plan[0].at == point

    def cut(self) -> None:
        """Break the hops of the next cut."""
        self.marks.append(len(self.seen))
        for hop in self._plan.popleft().hops:
            above, below = hop.split(">")
            self._network.partition({above}, {below})
        self._network.heal()

    def watch(self, stage: Stage) -> None:
        """Let the stage's work go by here."""
        loop = asyncio.get_running_loop()
        for name, title in _WORK.items():
            setattr(stage, name, self._watched(loop, stage, getattr(stage, name), title))

    def _watched(
        self, loop: asyncio.AbstractEventLoop, stage: Stage, work: Callable[..., Any], title: Callable[..., str | None]
    ) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            what = title(*arguments, **named)
            if what is None:
                return work(*arguments, **named)
            self._pause(loop, f"stage {stage.index}", "before", what)
            result = work(*arguments, **named)
            self._pause(loop, f"stage {stage.index}", "after", what)
            return result

        return watched

    def _pause(self, loop: asyncio.AbstractEventLoop, where: str, when: When, what: str) -> None:
        """On the device's thread, which goes on when the loop has cut."""
        if self.passes(where, when, what):
            asyncio.run_coroutine_threadsafe(self._cut_and_tell(), loop).result()

    async def _cut_and_tell(self) -> None:
        self.cut()
        for _ in range(TURNS):
            await asyncio.sleep(0)


def _forward(id: Any, hidden: Any, train: bool = True) -> str | None:
    return f"forward {id.step}.{id.index}" if train else None


def _loss(id: Any, hidden: Any, targets: Any, samples: int, train: bool = True) -> str | None:
    return f"loss {id.step}.{id.index}" if train else None


_WORK: Mapping[str, Callable[..., str | None]] = {
    "forward": _forward,
    "loss": _loss,
    "backward": lambda id, gradient: f"backward {id.step}.{id.index}",
    "commit": lambda step, *terms: f"commit {step}",
}


@lru_cache(4096)  # Both ends of a hop ask.
def name_of(data: bytes) -> str:
    """What a frame carries, in words."""
    message, chunk = from_header(frames.split(data)[0])
    name = _name_of_message(message)
    return f"{name} at {chunk.offset}" if chunk is not None and chunk.offset else name


def _name_of_message(message: Message) -> str:
    kind, step, index = type(message).__name__, getattr(message, "step", None), getattr(message, "index", None)
    if kind in ("Open", "Opened") or step is None:
        return kind
    return f"{kind} {step}" + (f".{index}" if index is not None else "")


class CutTransport(WrappedTransport):
    """A host's transport whose hops go by a pair of scissors, both those that it opens and those that it serves."""

    def __init__(self, inner: Transport, me: str, scissors: Scissors) -> None:
        super().__init__(inner)
        self._me = me
        self._scissors = scissors

    def wrap_stream(self, stream: Stream, to: Endpoint, method: Method) -> Stream:
        return CutStream(stream, f"{self._me}>{to.host}", self._scissors)

    def wrap_service(self, service: Service) -> Service:
        streams = {name: self._watched(handler) for name, handler in service.streams.items()}
        return Service(service.name, service.calls, streams)

    def _watched(self, handler: StreamHandler) -> StreamHandler:
        async def watched(stream: Stream, caller: Caller) -> None:
            await handler(CutStream(stream, f"{caller.address}>{self._me}", self._scissors), caller)

        return watched


class CutStream(WrappedStream):
    """One end of a hop."""

    def __init__(self, inner: Stream, hop: str, scissors: Scissors) -> None:
        super().__init__(inner)
        self._hop = hop
        self._scissors = scissors

    async def send(self, data: bytes, more: bool = False) -> None:
        self._pass("before", name_of(data))
        await super().send(data, more)

    async def receive(self) -> bytes | None:
        data = await super().receive()
        self._pass("after", name_of(data) if data is not None else "the end")
        return data

    async def finish(self) -> None:
        self._pass("before", "the end")
        await super().finish()

    def _pass(self, when: When, what: str) -> None:
        if self._scissors.passes(self._hop, when, what):
            self._scissors.cut()
