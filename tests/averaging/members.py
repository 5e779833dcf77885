"""Members of a group that do nothing but exchange: no leader, no votes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import torch

from distqat.averaging import messages, outer, slices
from distqat.averaging.blame import AttemptError
from distqat.averaging.context import Context, Sibling
from distqat.averaging.contribution import Average, Contribution
from distqat.averaging.exchange import Exchange, Exchanges
from distqat.averaging.feedback import Feedback
from distqat.averaging.group import Group, Join, Rates
from distqat.averaging.messages import SliceHeader
from distqat.averaging.outer import OuterState
from distqat.averaging.spans import Shape
from distqat.ids import Endpoint, PeerId
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service, Stream, Transport
from distqat.sections import SyncSection
from tests.averaging.swarm import RUN, STAGE, Inline
from tests.averaging.words import round_ref

DILOCO = SyncSection(warmup_steps=0, max_wait=4.0)
UNKNOWN = Rates()


@dataclass(eq=False)
class Member:
    """One of them."""

    context: Context
    exchanges: Exchanges
    feedback: Feedback
    state: OuterState
    local: torch.Tensor
    samples: int = 1
    contribution: Contribution | None = None  # To the round; kept for further attempts of it.
    rates: Rates = UNKNOWN

    @property
    def name(self) -> PeerId:
        return self.context.me

    def join(self) -> Join:
        """Ready for the round, with its contribution worked out."""
        how = self.context.phase(self.state.round)
        if self.contribution is None and self.samples:
            self.contribution = Contribution.of(self.state, self.local, how, self.feedback)
        norm = self.contribution.norm if self.contribution is not None else 0.0
        elements, number = self.context.elements(how), self.state.round
        me, endpoint, digest = self.name, self.context.endpoint, self.state.digest
        return Join(round_ref(number), me, endpoint, self.samples, digest, elements, norm, self.rates)

    async def run(self, group: Group) -> Average:
        """One attempt."""
        exchange = Exchange(self.context, group, self.contribution, self.state)
        self.exchanges.begin(exchange)
        try:
            return await exchange.run()
        finally:
            self.exchanges.end(exchange)

    def after(self, average: Average) -> OuterState:
        """What the round would end with."""
        return outer.apply(self.state, average, self.context.phase(self.state.round))

    def commit(self, average: Average) -> None:
        """The round is committed; another begins."""
        self.feedback.commit(self.contribution, average)
        self.state = self.after(average)
        self.contribution = None

    async def answer(self, stream: Stream, caller: Caller) -> None:
        """As the service does."""
        message = await stream.receive()
        assert message is not None
        header, payload = messages.unframe(SliceHeader, message)
        exchange = await self.exchanges.find(header.attempt, 2.0)
        await exchange.owner.serve(stream, header, payload)


class Party:
    """All members."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._attempts = 0

    def group(self, codec: str = "none", factors: dict[PeerId, float] | None = None) -> Group:
        """The next attempt of the round."""
        self._attempts += 1
        joins = [member.join() for member in self.members]
        return slices.assign(f"attempt {self._attempts}", joins, joins[0].elements, codec, factors)

    async def average(self, codec: str, commit: bool = True) -> Average:
        """One round, in which all come to the same."""
        results = await self.exchange(self.group(codec))
        averages = [result for result in results if isinstance(result, Average)]
        assert len(averages) == len(self.members), results
        assert len({bytes(average.payload) for average in averages}) == 1
        if commit:
            for member, average in zip(self.members, averages, strict=True):
                member.commit(average)
        return averages[0]

    async def exchange(self, group: Group) -> list[Average | AttemptError]:
        """What every member comes to."""

        async def outcome(member: Member) -> Average | AttemptError:
            try:
                return await member.run(group)
            except AttemptError as error:
                return error

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(outcome(member)) for member in self.members]
        return [task.result() for task in running]


@asynccontextmanager
async def party(
    locals_: Sequence[torch.Tensor],
    start: torch.Tensor,
    buffers: int = 0,
    sync: SyncSection = DILOCO,
    network: Network | None = None,
    transports: Sequence[Transport] | None = None,
    host: str = "",
) -> AsyncIterator[Party]:
    """Members a, b, c, ... of a stage of one fragment, with these local values, that all begin at `start`."""
    network = network or Network()
    shape = Shape(start.numel() - buffers, start.numel())
    members: list[Member] = []
    async with AsyncExitStack() as stack:
        for index, local in enumerate(locals_):
            name = chr(ord("a") + index)
            transport = transports[index] if transports else network.transport(name)
            server = await stack.enter_async_context(transport.serve(Endpoint(host or name, 0)))
            context = Context(
                me=PeerId(name),
                endpoint=server.endpoint,
                run=RUN,
                stage=STAGE,
                shapes=(shape,),
                transport=transport,
                device=Inline(),
                sync=sync,
                siblings=lambda name=name: [  # type: ignore[misc]
                    Sibling(member.name, member.context.endpoint, 0, "", True)
                    for member in members
                    if member.name != name
                ],
                on_lost=lambda lost, reason: None,
            )
            state = OuterState.founding(start, [shape])
            member = Member(context, Exchanges(), Feedback(sync.error_feedback), state, local)
            server.add(Service(messages.AVERAGING, streams={messages.EXCHANGE.name: member.answer}))
            members.append(member)
        yield Party(members)
