"""One outer round of siblings in processes of their own: seconds and bytes, beside gloo's all-reduce of that vector.

The round does more than the all-reduce: siblings find each other, agree on a group, vote, and digest what they commit.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from bench.case import Case, Line, interleave
from bench.workers import Worker, open_worker
from distqat.averaging.averager import Averager
from distqat.averaging.context import Context, Sibling
from distqat.averaging.service import services
from distqat.ids import Endpoint, PeerId, RunId, StageIndex
from distqat.model.device import Device
from distqat.rpc.grpc import GrpcTransport, open_transport
from distqat.sections import SyncSection

ELEMENTS = 10_000_000
GROUPS = (2, 4)
SYNC = SyncSection(warmup_steps=0, max_wait=30.0)
FLOW = "averaging"
MEGA = 1e6


@dataclass(frozen=True)
class Span:
    """When a sibling was busy with a round, by the clock that all processes share; and what it sent meanwhile."""

    began: float
    ended: float
    sent: int = 0


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Groups of two sizes."""
    for number in GROUPS:
        for line in await _group(number, 3 if quick else 15):
            yield line


async def _group(number: int, runs: int) -> list[Line]:
    async with AsyncExitStack() as stack:
        meeting = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "gloo"
        siblings = [
            await stack.enter_async_context(open_worker(f"sibling {rank}", open_sibling, rank, number, meeting))
            for rank in range(number)
        ]
        endpoints = [await sibling.ask("endpoint") for sibling in siblings]
        await _all(siblings, "begin", endpoints)
        ours, gloo = await interleave(runs, lambda: _all(siblings, "synchronise"), lambda: _all(siblings, "all_reduce"))
        await _check_equal(siblings)
    name = f"{number} siblings, {ELEMENTS // 1_000_000} M fp32"
    sent = [sum(span.sent for span in spans) / MEGA for spans in ours]
    least = 2 * (number - 1) * 4 * ELEMENTS / MEGA
    return [
        Case("round", name, "s", "lower", "torch.distributed gloo all_reduce").line(
            [_seconds(spans) for spans in ours], [_seconds(spans) for spans in gloo]
        ),
        Case("round", f"{name}, sent by all", "MB", "lower", "least of an all-reduce, computed").line(sent, [least]),
    ]


async def _all(siblings: Sequence[Worker], method: str, *arguments: object) -> list[Span]:
    return list(await asyncio.gather(*(sibling.ask(method, *arguments) for sibling in siblings)))


def _seconds(spans: Sequence[Span]) -> float:
    return max(span.ended for span in spans) - min(span.began for span in spans)


async def _check_equal(siblings: Sequence[Worker]) -> None:
    digests = {await sibling.ask("digest") for sibling in siblings}
    assert len(digests) == 1, f"the siblings ended with different digests: {digests}"


class Member:
    """A sibling, and its rank in the peer's group."""

    def __init__(self, rank: int, transport: GrpcTransport, averager: Averager, others: list[Endpoint]) -> None:
        self.rank = rank
        self.transport = transport
        self.averager = averager
        self.others = others  # Of the siblings by rank; empty until they are known.
        numbers = torch.Generator().manual_seed(rank)
        self.vector = torch.randn(ELEMENTS, generator=numbers)

    async def endpoint(self) -> Endpoint:
        """Where it listens."""
        return self.averager.context.endpoint

    async def begin(self, endpoints: list[Endpoint]) -> None:
        """Learn of the siblings, and found the run."""
        self.others[:] = endpoints
        await self.averager.found(torch.zeros(ELEMENTS))

    async def synchronise(self) -> Span:
        """One outer round."""
        sent, began = self._sent(), time.monotonic()
        await self.averager.synchronise(self.vector, 1)
        return Span(began, time.monotonic(), self._sent() - sent)

    async def all_reduce(self) -> Span:
        """The mean of the same vectors, by gloo."""
        vector, began = self.vector.clone(), time.monotonic()
        await asyncio.to_thread(distributed.all_reduce, vector)
        vector /= distributed.get_world_size()
        return Span(began, time.monotonic())

    async def digest(self) -> str:
        """Of what is committed."""
        assert self.averager.outer is not None
        return self.averager.outer.digest

    def _sent(self) -> int:
        flow = self.transport.traffic().get(FLOW)
        return flow.sent if flow is not None else 0


@asynccontextmanager
async def open_sibling(rank: int, number: int, meeting: Path) -> AsyncIterator[Member]:
    """A sibling that serves, in a gloo group of `number` processes that meet at a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    await asyncio.to_thread(
        distributed.init_process_group, "gloo", init_method=f"file://{meeting}", rank=rank, world_size=number
    )
    others: list[Endpoint] = []
    async with (
        Device.open("cpu", threads=1) as device,
        open_transport() as transport,
        transport.serve(Endpoint("127.0.0.1", 0)) as server,
    ):
        context = Context(
            me=_name(rank),
            endpoint=server.endpoint,
            run=RunId("bench", "0" * 32),
            stage=StageIndex(0),
            num_parameters=ELEMENTS,
            num_elements=ELEMENTS,
            transport=transport,
            device=device,
            sync=SYNC,
            siblings=lambda: _siblings(rank, others, averager),
            on_lost=lambda peer, reason: None,
        )
        async with Averager.open(context) as averager:
            for service in services(averager):
                server.add(service)
            yield Member(rank, transport, averager, others)


def _siblings(rank: int, endpoints: Sequence[Endpoint], averager: Averager) -> list[Sibling]:
    """What a directory would tell: all are alive, and as far as this one."""
    state = averager.outer
    if state is None:
        return []
    return [
        Sibling(_name(other), endpoint, state.round, state.digest, True)
        for other, endpoint in enumerate(endpoints)
        if other != rank
    ]


def _name(rank: int) -> PeerId:
    return PeerId(f"sibling{rank}")
