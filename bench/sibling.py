"""One sibling of `bench/group.py` in a process of its own; the same process takes part in gloo's all-reduce.

It has a vector that others can make too (`bench.peers.vectors`), so what came out can be checked anywhere.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from bench.machines import Machine
from bench.memory import peak_bytes, reset_peak, resident_bytes
from bench.peers import vectors
from bench.timed import TimedTransport
from distqat.averaging.averager import Averager
from distqat.averaging.context import Context, Sibling
from distqat.averaging.service import services
from distqat.averaging.spans import Shape
from distqat.errors import RoundError
from distqat.ids import Endpoint, PeerId, RunId, StageIndex
from distqat.model.device import Device
from distqat.rpc.grpc import open_transport
from distqat.rpc.transport import Server
from distqat.sections import SyncSection

FLOW = "averaging"
RUN = RunId("bench", "0" * 32)
STAGE = StageIndex(0)
GLOO_PATIENCE = timedelta(seconds=300)


@dataclass(frozen=True)
class Span:
    """One round at one sibling, by the clock that all processes share."""

    began: float
    ended: float
    sent: int = 0
    """Bytes of messages, as the transport counts them."""
    first: float | None = None
    """When the first frame of an exchange left; None if none did."""
    grown: int = 0
    """Bytes by which the process was larger at its largest than before the round."""
    contributors: int = 0
    """In the committed average; 0 if none was committed."""
    digest: str = ""
    """Of what was committed."""


class Member:
    """A sibling that serves; `prepare` gives it an averager."""

    def __init__(self, rank: int, transport: TimedTransport, server: Server, device: Device) -> None:
        self.rank = rank
        self._transport = transport
        self._server = server
        self._device = device
        self._stack = AsyncExitStack()  # Holds the averager.
        self._averager: Averager | None = None
        self._endpoints: Sequence[Endpoint] = ()  # Of all siblings, by rank.
        self._vector = torch.empty(0)

    async def endpoint(self) -> Endpoint:
        """Where it listens."""
        return self._server.endpoint

    async def prepare(self, endpoints: Sequence[Endpoint], elements: int, sync: SyncSection) -> None:
        """A new run of these siblings, from zeros; what was before is forgotten."""
        await self._stack.aclose()
        self._averager = None
        self._endpoints = endpoints
        if len(self._vector) != elements:
            self._vector = vectors.vector(self.rank, elements)
        context = Context(
            me=_name(self.rank),
            endpoint=self._server.endpoint,
            run=RUN,
            stage=STAGE,
            shapes=(Shape(elements, elements),),
            transport=self._transport,
            device=self._device,
            sync=sync,
            siblings=self._siblings,
            on_lost=lambda peer, reason: None,
        )
        self._averager = await self._stack.enter_async_context(Averager.open(context))
        for service in services(self._averager):
            self._server.add(service)
        await self._averager.found(torch.zeros(elements))

    async def synchronise(self) -> Span:
        """One outer round, whatever becomes of it."""
        assert self._averager is not None
        reset_peak()
        before, sent = resident_bytes(), self._sent()
        self._transport.first = None
        began = time.monotonic()
        try:
            receipt = (await self._averager.synchronise(self._vector, 1)).receipt
        except RoundError:
            receipt = None
        ended = time.monotonic()
        return Span(
            began,
            ended,
            sent=self._sent() - sent,
            first=self._transport.first,
            grown=peak_bytes() - before,
            contributors=len(receipt.contributors) if receipt is not None else 0,
            digest=receipt.digest if receipt is not None else "",
        )

    async def synchronise_and_die(self, after: int) -> None:
        """Take part in a round until so many bytes are sent; then the process kills itself."""
        last = self._sent() + after

        def die() -> None:
            if self._sent() >= last:
                os.kill(os.getpid(), signal.SIGKILL)

        self._transport.on_frame = die
        await self.synchronise()

    async def error(self, group: int) -> float:
        """Relative L2 distance of the average of the first round from the mean of the group's vectors."""
        assert self._averager is not None
        assert self._averager.outer is not None
        assert self._averager.outer.round == 1
        # The anchor was zero, and so was the momentum: it is the average of the pseudo-gradients now.
        return vectors.error(-self._averager.outer.momentum, range(group))

    async def meet(self, file: Path, group: int, interface: str) -> None:
        """Join a gloo group of so many processes."""
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        await asyncio.to_thread(
            distributed.init_process_group,
            "gloo",
            init_method=f"file://{file}",
            rank=self.rank,
            world_size=group,
            timeout=GLOO_PATIENCE,
        )

    async def all_reduce(self) -> Span:
        """The mean of the same vectors, by gloo."""
        vector, began = self._vector.clone(), time.monotonic()
        await asyncio.to_thread(distributed.all_reduce, vector)
        vector /= distributed.get_world_size()
        return Span(began, time.monotonic())

    async def close(self) -> None:
        """Close the averager, if there is one."""
        await self._stack.aclose()

    def _siblings(self) -> list[Sibling]:
        """What a directory would tell that never learns of a death: all are alive, and as far as this one."""
        state = self._averager.outer if self._averager is not None else None
        if state is None:
            return []
        return [
            Sibling(_name(other), endpoint, state.round, state.digest, True)
            for other, endpoint in enumerate(self._endpoints)
            if other != self.rank
        ]

    def _sent(self) -> int:
        flow = self._transport.traffic().get(FLOW)
        return flow.sent if flow is not None else 0


@asynccontextmanager
async def open_member(rank: int, machine: Machine) -> AsyncIterator[Member]:
    """A sibling without an averager, on one thread, listening on that machine."""
    torch.set_num_threads(1)
    async with (
        Device.open("cpu", threads=1) as device,
        open_transport() as inner,
        inner.serve(Endpoint(machine.host, 0)) as server,
    ):
        member = Member(rank, TimedTransport(inner), server, device)
        try:
            yield member
        finally:
            await member.close()


def _name(rank: int) -> PeerId:
    return PeerId(f"sibling{rank}")
