"""Siblings of one stage on a network in memory, with a directory that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from distqat.averaging import outer
from distqat.averaging.averager import Averager
from distqat.averaging.context import Compute, Context, Sibling
from distqat.averaging.service import services
from distqat.averaging.spans import Shape
from distqat.errors import DistqatError
from distqat.ids import Endpoint, PeerId, RunId, StageIndex
from distqat.rpc.local import Network
from distqat.rpc.transport import Transport
from distqat.sections import SyncSection

T = TypeVar("T")

RUN = RunId("test", "0" * 32)
STAGE = StageIndex(1)
PLAIN = SyncSection(warmup_steps=1000, max_wait=4.0, codec="none")
DILOCO = SyncSection(warmup_steps=0, inner_steps=10, max_wait=4.0, codec="none")


class Inline:
    """A device that works at once; keeps tests on the virtual clock simple."""

    async def run(self, fn: Callable[[], T], /) -> T:
        return fn()


@dataclass(eq=False)
class Node:
    """One sibling."""

    peer: PeerId
    averager: Averager
    is_live: bool = True  # The directory lists it.
    has_crashed: bool = False
    lost: list[tuple[str, str]] = field(default_factory=list)  # What `on_lost` was told.
    refused: list[tuple[str, str]] = field(default_factory=list)  # What `on_refused` was told.

    def __repr__(self) -> str:
        return f"<Node {self.peer}>"

    @property
    def sibling(self) -> Sibling:
        state = self.averager.outer
        number, digest = (state.round, state.digest) if state is not None else (0, "")
        return Sibling(self.peer, self.averager.context.endpoint, number, digest, state is not None)

    @property
    def anchor(self) -> torch.Tensor:
        assert self.averager.outer is not None
        return self.averager.outer.anchor

    @property
    def digest(self) -> str:
        return self.sibling.digest


class Swarm:
    """All siblings; the directory that each of them sees."""

    def __init__(self, network: Network, sync: SyncSection, parameters: int = 8, buffers: int = 2) -> None:
        self.network = network
        self.sync = sync
        self.parameters = parameters
        self.elements = parameters + buffers
        self.fragments = 1  # Of equal lengths, as far as possible.
        self.nodes: dict[PeerId, Node] = {}
        self.hidden: set[tuple[str, str]] = set()  # (who, whom): who does not see whom in its directory.

    @asynccontextmanager
    async def node(
        self, name: str, transport: Transport | None = None, host: str = "", device: Compute | None = None
    ) -> AsyncIterator[Node]:
        """A sibling without state, serving."""
        peer = PeerId(name)
        transport = transport or self.network.transport(name)
        async with transport.serve(Endpoint(host or name, 0)) as server:
            node: Node | None = None
            context = Context(
                me=peer,
                endpoint=server.endpoint,
                run=RUN,
                stage=STAGE,
                shapes=self.shapes,
                transport=transport,
                device=device or Inline(),
                sync=self.sync,
                siblings=lambda: self.siblings(peer),
                on_lost=lambda lost, reason: node.lost.append((lost, reason)) if node is not None else None,
                on_refused=lambda whose, reason: node.refused.append((whose, reason)) if node is not None else None,
            )
            async with Averager.open(context) as averager:
                node = Node(peer, averager)
                for service in services(averager):
                    server.add(service)
                self.nodes[peer] = node
                try:
                    yield node
                finally:
                    # Of a crash the directory learns when the test says so.
                    node.is_live = node.is_live and node.has_crashed

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the fragments; the buffers are in the last one."""
        ends = [self.parameters * (index + 1) // self.fragments for index in range(self.fragments)]
        lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        last = lengths.pop()
        return (*(Shape(length, length) for length in lengths), Shape(last, last + self.elements - self.parameters))

    def pieces(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """The vectors of the fragments."""
        return [part for part, _ in outer.split(whole, self.shapes)]

    def siblings(self, me: PeerId) -> list[Sibling]:
        """What the directory tells this peer."""
        return [
            node.sibling
            for peer, node in self.nodes.items()
            if peer != me and node.is_live and (me, peer) not in self.hidden
        ]

    def crash(self, node: Node) -> None:
        """The node dies; the directory learns of it later, if the test says so."""
        node.has_crashed = True
        self.network.crash(node.peer)

    def start(self) -> torch.Tensor:
        """The numbers that all founders begin with."""
        return torch.arange(self.elements, dtype=torch.float32)


@asynccontextmanager
async def founded(
    names: Sequence[str], sync: SyncSection = PLAIN, network: Network | None = None, **sizes: int
) -> AsyncIterator[tuple[Swarm, list[Node]]]:
    """A swarm of siblings that have founded the run with equal numbers."""
    swarm = Swarm(network or Network(), sync, **sizes)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(swarm.node(name)) for name in names]
        for node in nodes:
            await node.averager.found(swarm.start())
        yield swarm, nodes


async def together(*works: Any) -> list[Any]:
    """All at once; the errors of distqat among the results instead of raised."""

    async def outcome(work: Any) -> Any:
        try:
            return await work
        except DistqatError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(work)) for work in works]
    return [task.result() for task in tasks]


def moved(swarm: Swarm, by: float) -> torch.Tensor:
    """Local values that lie so far from the start."""
    return swarm.start() + by
