"""Replicas of one model in one process that take outer rounds as siblings do: the real averagers and what lies between
them and a stage, over the network in memory on a clock that jumps. So what they learn, and what a receipt says of the
bytes, is what real siblings would learn and say.

    async with open_replicas(config, source, number) as replicas:
        await replicas.step(parts)          # one inner step of each replica, then what is due of a round
        await replicas.settle()             # all fragments synchronise
        loss = replicas.evaluate(source)    # of what is committed
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from distqat.averaging.averager import Averager
from distqat.averaging.context import Context, Sibling
from distqat.averaging.service import services
from distqat.averaging.spans import Shape
from distqat.config import RunConfig
from distqat.data.sources import Source, evaluation_batches
from distqat.data.tasks import find_task
from distqat.ids import Endpoint, MicrobatchId, PeerId, StageIndex
from distqat.model.build import build_stage
from distqat.model.stage import Stage
from distqat.roles.flight import Flight, Handover, is_own, touched_by
from distqat.roles.trials import EVALUATION_BATCH, to_tensors
from distqat.rpc.local import Network

T = TypeVar("T")

Tensors = dict[str, torch.Tensor]
"""A batch: "inputs" and the targets."""


class Inline:
    """A device that works at once."""

    async def run(self, fn: Callable[[], T], /) -> T:
        """See Compute."""
        return fn()


@dataclass
class Replica:
    """One sibling."""

    stage: Stage
    averager: Averager
    handover: Handover
    flight: Flight | None = None
    """The round whose result is not merged yet."""
    bytes: int = 0
    """Sent and received in all rounds, as their receipts say."""

    def train(self, step: int, batch: Tensors) -> None:
        """One inner step on a whole batch."""
        targets = dict(batch)
        inputs = targets.pop("inputs")
        self.stage.loss(MicrobatchId(step, 0), inputs, targets, len(inputs))
        self.stage.commit(step)
        self.handover.count(len(inputs))
        if self.flight is not None:
            self.flight.steps += 1


class Replicas:
    """All of them; they step together."""

    def __init__(self, members: Sequence[Replica], judge: Stage) -> None:
        self.members = members
        self.rounds = 0  # Committed.
        self._judge = judge  # Holds what is committed when that is evaluated.
        self._step = 0  # The last one.
        self._since = 0  # Steps since the last round began.

    async def step(self, parts: Sequence[Tensors]) -> None:
        """One inner step of each replica on its part of the batch, and what is due of rounds after it."""
        self._step += 1
        self._since += 1
        for replica, batch in zip(self.members, parts, strict=True):
            replica.train(self._step, batch)
        flight = self.members[0].flight
        if flight is not None and flight.steps >= flight.how.overlap:
            self._merge()
        if self.members[0].flight is None and self.members[0].averager.is_due(self._since):
            await self._round(may_overlap=True)

    async def settle(self) -> None:
        """All fragments synchronise while training waits, so that nothing learned is left out."""
        if self.members[0].flight is not None:
            self._merge()
        left = set(self.members[0].handover.samples)
        while left and (touched := await self._round(may_overlap=False)):
            left -= set(touched)

    def evaluate(self, source: Source) -> float:
        """Mean held-out loss of what is committed, for each token."""
        outer = self.members[0].averager.outer
        assert outer is not None
        everything = range(len(outer.parts))
        self._judge.scatter(everything, outer.gather(everything))
        return evaluate(self._judge, source)

    async def _round(self, may_overlap: bool) -> Sequence[int]:
        """One round of all; the fragments that it has changed, if it is merged already."""
        how = self.members[0].averager.phase
        assert how is not None
        is_beside = may_overlap and how.overlap > 0
        self._since = 0
        for replica in self.members:
            replica.flight = replica.handover.begin(how, replica.handover.share(), is_beside)
        await asyncio.gather(*(self._synchronise(replica) for replica in self.members))
        return () if is_beside else self._merge()

    async def _synchronise(self, replica: Replica) -> None:
        flight = replica.flight
        assert flight is not None
        samples = max(flight.samples.values())
        outcome = flight.outcome = await replica.averager.synchronise(flight.local, samples)
        if samples:
            assert is_own(outcome), "a sibling was left out of a round without faults"
            assert outcome.receipt is not None
            assert len(outcome.receipt.contributors) == len(self.members)
            replica.bytes += outcome.receipt.bytes

    def _merge(self) -> Sequence[int]:
        flights = []
        for replica in self.members:
            flight, replica.flight = replica.flight, None
            assert flight is not None
            replica.handover.merge(flight)
            replica.handover.account(flight)
            flights.append(flight)
        digests = {replica.averager.outer.digest for replica in self.members if replica.averager.outer is not None}
        assert len(digests) == 1, "siblings with different states"
        outcome = flights[0].outcome
        assert outcome is not None
        self.rounds += outcome.receipt is not None
        return touched_by(outcome)


@asynccontextmanager
async def open_replicas(config: RunConfig, source: Source, number: int) -> AsyncIterator[Replicas]:
    """So many replicas of a run of one stage, which have founded it with equal numbers."""
    network, task, endpoints = Network(), find_task(source.task), dict[PeerId, Endpoint]()
    members: list[Replica] = []
    async with AsyncExitStack() as stack:
        for index in range(number):
            me = PeerId(f"replica{index}")
            transport = network.transport(me)
            server = await stack.enter_async_context(transport.serve(Endpoint(me, 0)))
            endpoints[me] = server.endpoint
            stage = build_stage(config, source.shape, 0, task)
            context = Context(
                me=me,
                endpoint=server.endpoint,
                run=config.id,
                stage=StageIndex(0),
                shapes=tuple(Shape(part.num_parameters, part.num_elements) for part in stage.fragments),
                transport=transport,
                device=Inline(),
                sync=config.sync,
                siblings=_directory(me, members, endpoints),
                on_lost=lambda peer, reason: None,
            )
            averager = await stack.enter_async_context(Averager.open(context))
            for service in services(averager):
                server.add(service)
            await averager.found(stage.gather(range(len(stage.fragments))))
            members.append(Replica(stage, averager, Handover(stage, averager)))
        yield Replicas(members, build_stage(config, source.shape, 0, task))


def evaluate(stage: Stage, source: Source) -> float:
    """Mean loss of the held-out part, for each token."""
    total, samples = 0.0, 0
    for arrays in evaluation_batches(source.held_out, EVALUATION_BATCH):
        targets = to_tensors(arrays)
        inputs = targets.pop("inputs")
        result = stage.loss(MicrobatchId(stage.version + 1, 0), inputs, targets, len(inputs), train=False)
        total += result.sums["loss"]
        samples += len(inputs)
    return total / samples


def _directory(
    me: PeerId, members: Sequence[Replica], endpoints: Mapping[PeerId, Endpoint]
) -> Callable[[], list[Sibling]]:
    def siblings() -> list[Sibling]:
        found = []
        for replica in members:
            peer, state = replica.averager.context.me, replica.averager.outer
            if peer != me and state is not None:
                found.append(Sibling(peer, endpoints[peer], state.round, state.digest, True))
        return found

    return siblings
