"""Donors with states that a test makes up, and an asker, on a network in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from distqat.averaging import kept, messages
from distqat.averaging.context import Compute, Context, Sibling
from distqat.averaging.kept import Kept, Shelf
from distqat.averaging.outer import OuterState, Part
from distqat.averaging.phases import phase
from distqat.averaging.spans import Shape
from distqat.averaging.state.donor import Donor
from distqat.averaging.state.messages import Fetch
from distqat.averaging.state.snapshot import ChunkRef
from distqat.ids import Endpoint, PeerId, RunId, StageIndex
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service, Stream, Transport
from distqat.rpc.wrapped import WrappedStream
from distqat.sections import SyncSection
from distqat.wire import codecs

T = TypeVar("T")

RUN = RunId("test", "0" * 32)
STAGE = StageIndex(1)
SHAPES = (Shape(500, 520), Shape(300, 300), Shape(200, 260))
SYNC = SyncSection(warmup_steps=2, inner_steps=10, fragments=3, max_wait=4.0, kept_rounds=4)

Hook = Callable[[ChunkRef, bytes], Awaitable[bytes]]
"""Sees each chunk before it leaves; what it returns leaves instead."""


class Inline:
    """A device that works at once; keeps tests on the virtual clock simple."""

    async def run(self, fn: Callable[[], T], /) -> T:
        return fn()


def make_state(seed: int = 0, number: int = 3, shapes: Sequence[Shape] = SHAPES) -> OuterState:
    """A state of random numbers."""
    draw = torch.Generator().manual_seed(seed)
    parts = [
        Part.of(torch.randn(shape.num_elements, generator=draw), torch.randn(shape.num_parameters, generator=draw))
        for shape in shapes
    ]
    return OuterState.of(parts, number, [PeerId("alice"), PeerId("bob")])


def touched(state: OuterState, fragment: int) -> OuterState:
    """The state of one round later, which has changed this fragment."""
    parts = list(state.parts)
    parts[fragment] = Part.of(parts[fragment].anchor + 1.0, parts[fragment].momentum - 1.0)
    return OuterState.of(parts, state.round + 1, state.members)


def rounds(state: OuterState, count: int, codec: str = "none") -> list[tuple[Kept, OuterState]]:
    """Rounds that follow a state, and the state after each."""
    found: list[tuple[Kept, OuterState]] = []
    draw = torch.Generator().manual_seed(state.round)
    for number in range(state.round, state.round + count):
        how = phase(number, SYNC)
        average = 0.1 * torch.randn(sum(state.shapes[index].num_elements for index in how.fragments), generator=draw)
        payload = codecs.find(codec).encode(average)
        members = (PeerId("alice"), PeerId(f"member-{number}"))
        first = Kept(number, state.digest, "", members, codec, payload)
        after = kept.apply(state, first, how)
        found.append((replace(first, digest=after.digest), after))
        state = after
    return found


@dataclass
class Held:
    """What a donor has committed."""

    outer: OuterState | None
    kept: Shelf

    async def wait_other(self, digest: str) -> None:
        """Nobody waits for a state that a test makes up."""
        raise NotImplementedError


@dataclass(eq=False)
class Giver:
    """A donor, and what was asked of it."""

    sibling: Sibling
    held: Held
    donor: Donor
    asked: Counter[ChunkRef] = field(default_factory=Counter)
    """How often each chunk was asked for."""
    calls: Counter[str] = field(default_factory=Counter)
    """How often each method was called."""
    hook: Hook | None = None

    def commit(self, state: OuterState) -> None:
        """Another state is committed here now."""
        self.held.outer = state

    def service(self) -> Service:
        """The donor's, watched."""
        inner = self.donor.service()

        async def describe(request: bytes, caller: Caller) -> bytes:
            self.calls["Describe"] += 1
            return await inner.calls["Describe"](request, caller)

        async def fetch(stream: Stream, caller: Caller) -> None:
            self.calls["Fetch"] += 1
            await inner.streams["Fetch"](_Watched(stream, self), caller)

        async def replay(stream: Stream, caller: Caller) -> None:
            self.calls["Replay"] += 1
            await inner.streams["Replay"](stream, caller)

        return Service(inner.name, {"Describe": describe}, {"Fetch": fetch, "Replay": replay})


class _Watched(WrappedStream):
    """A donor's end of a stream of chunks."""

    def __init__(self, inner: Stream, giver: Giver) -> None:
        super().__init__(inner)
        self.giver = giver

    async def receive(self) -> bytes | None:
        request = await super().receive()
        if request is not None:
            self.giver.asked[messages.decode(Fetch, request).chunk] += 1
        return request

    async def send(self, data: bytes, more: bool = False) -> None:
        if self.giver.hook is not None:
            data = await self.giver.hook(messages.unframe(ChunkRef, data)[0], data)
        await super().send(data, more)


class Stock:
    """All donors, and one that asks."""

    def __init__(self, network: Network, sync: SyncSection = SYNC, shapes: Sequence[Shape] = SHAPES) -> None:
        self.network = network
        self.sync = sync
        self.shapes = tuple(shapes)
        self.givers: list[Giver] = []
        self._stack = AsyncExitStack()

    @property
    def siblings(self) -> list[Sibling]:
        """All donors, as the directory lists them."""
        return [giver.sibling for giver in self.givers]

    @property
    def asked(self) -> Counter[ChunkRef]:
        """How often each chunk was asked for, of all donors."""
        return sum((giver.asked for giver in self.givers), Counter[ChunkRef]())

    def context(self, name: str, endpoint: Endpoint, transport: Transport, device: Compute | None = None) -> Context:
        """What an expert is told."""
        return Context(
            me=PeerId(name),
            endpoint=endpoint,
            run=RUN,
            stage=STAGE,
            shapes=self.shapes,
            transport=transport,
            device=device or Inline(),
            sync=self.sync,
            siblings=lambda: self.siblings,
            on_lost=lambda peer, reason: None,
        )

    def asker(self, transport: Transport | None = None, device: Compute | None = None) -> Context:
        """One that has nothing, or too little."""
        return self.context(
            "newcomer", Endpoint("newcomer", 1), transport or self.network.transport("newcomer"), device
        )

    async def donor(
        self,
        name: str,
        state: OuterState | None,
        kept: Sequence[Kept] = (),
        transport: Transport | None = None,
        host: str = "",
        device: Compute | None = None,
    ) -> Giver:
        """A donor that serves until the stock is closed."""
        transport = transport or self.network.transport(name)
        server = await self._stack.enter_async_context(transport.serve(Endpoint(host or name, 0)))
        context = self.context(name, server.endpoint, transport, device)
        held = Held(state, Shelf(self.sync.kept_rounds, context.state_bytes))
        for one in kept:
            held.kept.append(one)
        number, digest = (state.round, state.digest) if state is not None else (0, "")
        sibling = Sibling(PeerId(name), server.endpoint, number, digest, True)
        giver = Giver(sibling, held, Donor(context, held))
        self._stack.callback(giver.donor.close)
        server.add(giver.service())
        self.givers.append(giver)
        return giver

    async def donors(self, state: OuterState, *names: str) -> list[Giver]:
        """Several that hold the same."""
        return [await self.donor(name, state) for name in names]

    @classmethod
    @asynccontextmanager
    async def open(
        cls, network: Network | None = None, sync: SyncSection = SYNC, shapes: Sequence[Shape] = SHAPES
    ) -> AsyncIterator[Stock]:
        """Without donors yet."""
        stock = cls(network or Network(delay=0.01), sync, shapes)
        async with stock._stack:
            yield stock


def slowly(seconds: float) -> Hook:
    """Each chunk takes so long."""

    async def hook(chunk: ChunkRef, data: bytes) -> bytes:
        await asyncio.sleep(seconds)
        return data

    return hook


def after(count: int, act: Callable[[], Awaitable[None]]) -> Hook:
    """Do something once, before the chunk of that number leaves."""
    left = [count]

    async def hook(chunk: ChunkRef, data: bytes) -> bytes:
        left[0] -= 1
        if left[0] == -1:
            await act()
        return data

    return hook


def num_chunks(size: int, shapes: Sequence[Shape] = SHAPES) -> int:
    """Of a state of these fragments."""
    return sum(-(-4 * (shape.num_elements + shape.num_parameters) // size) for shape in shapes)
