"""Siblings of ours that take rounds together, each in a process of its own.

async with open_group(machines) as group:
    await group.prepare(elements, sync)
    run = await group.round()
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from bench.gauge import Gauge
from bench.machines import Machine
from bench.runs import Run
from bench.sibling import Span, open_member
from bench.workers import Worker, WorkerError, open_worker
from distqat.sections import SyncSection


class Group:
    """The processes."""

    def __init__(self, machines: Sequence[Machine], folder: Path, stack: AsyncExitStack) -> None:
        self._machines = machines
        self._folder = folder  # Where those of a gloo group meet.
        self._stack = stack  # Holds the processes.
        self._members: list[Worker] = []  # By rank.
        self._meetings = 0

    @property
    def _gauge(self) -> Gauge:
        return Gauge(self._machines, [member.pid for member in self._members])

    async def start(self) -> None:
        """All of them."""
        self._members = [await self._open(rank) for rank in range(len(self._machines))]

    async def meet(self) -> None:
        """For `all_reduce`: once, when all processes are there."""
        self._meetings += 1
        file = self._folder / f"gloo{self._meetings}"
        interfaces = [machine.interface for machine in self._machines]
        await asyncio.gather(
            *(
                member.ask("meet", file, len(self._members), interface)
                for member, interface in zip(self._members, interfaces, strict=True)
            )
        )

    async def prepare(self, elements: int, sync: SyncSection) -> None:
        """A new run, from zeros."""
        endpoints = [await member.ask("endpoint") for member in self._members]
        await self._all("prepare", endpoints, elements, sync)

    async def round(self) -> Run:
        """One outer round."""
        return await self._measure("synchronise", partial(_of_round, number=len(self._members)))

    async def all_reduce(self) -> Run:
        """The same by gloo, which says nothing of its result."""
        return await self._measure("all_reduce", _of_all_reduce)

    async def error(self, elements: int, sync: SyncSection) -> float:
        """Relative L2 error of the average of the first round."""
        await self.prepare(elements, sync)
        await self._all("synchronise")
        return float(await self._members[0].ask("error", len(self._members)))

    async def kill(self, after: int) -> Run:
        """A round in which the last member dies when it has sent so many bytes; of the others."""
        *others, victim = self._members
        gauge = Gauge(self._machines, [member.pid for member in others])
        spans: list[Span] = []

        async def work() -> float:
            dying = asyncio.ensure_future(_die(victim, after))
            spans.extend(await asyncio.gather(*(member.ask("synchronise") for member in others)))
            await dying
            return _seconds(spans)

        cost = await gauge.cost(work)
        return _of_round(spans, cost.seconds, cost.cpu, cost.wire, number=len(others))

    async def replace_last(self) -> None:
        """A new process in place of one that is dead."""
        self._members[-1] = await self._open(len(self._members) - 1)

    async def _measure(self, method: str, summarise: Callable[[Sequence[Span], float, float, int], Run]) -> Run:
        spans: list[Span] = []

        async def work() -> float:
            spans.extend(await self._all(method))
            return _seconds(spans)

        cost = await self._gauge.cost(work)
        return summarise(spans, cost.seconds, cost.cpu, cost.wire)

    async def _all(self, method: str, *arguments: object) -> list[Span]:
        return list(await asyncio.gather(*(member.ask(method, *arguments) for member in self._members)))

    def _open(self, rank: int) -> Awaitable[Worker]:
        machine = self._machines[rank]
        return self._stack.enter_async_context(
            open_worker(f"sibling {rank}", open_member, rank, machine, machine=machine)
        )


@asynccontextmanager
async def open_group(machines: Sequence[Machine]) -> AsyncIterator[Group]:
    """A sibling on each of the machines, which may be one and the same."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        group = Group(machines, folder, stack)
        await group.start()
        yield group


async def _die(victim: Worker, after: int) -> None:
    try:
        await victim.ask("synchronise_and_die", after)
    except WorkerError:
        return
    raise AssertionError(f"{victim.name} should have died")


def _of_round(spans: Sequence[Span], seconds: float, cpu: float, wire: int, number: int) -> Run:
    digests = {span.digest for span in spans}
    firsts = [span.first for span in spans if span.first is not None]
    return Run(
        seconds=seconds,
        cpu=cpu,
        wire=wire,
        has_succeeded=len(digests) == 1 and all(span.contributors >= number for span in spans),
        num_results=len(digests),
        sent=sum(span.sent for span in spans),
        formed=min(firsts) - max(span.began for span in spans) if firsts else None,
        grown=max(span.grown for span in spans),
    )


def _of_all_reduce(spans: Sequence[Span], seconds: float, cpu: float, wire: int) -> Run:
    return Run(seconds, cpu, wire, has_succeeded=True, num_results=0)


def _seconds(spans: Sequence[Span]) -> float:
    return max(span.ended for span in spans) - min(span.began for span in spans)
