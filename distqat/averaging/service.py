"""The side that answers: invitations, joins, slices and votes of siblings, and newcomers who ask for state."""

from __future__ import annotations

import asyncio

from distqat.averaging import catchup, messages
from distqat.averaging.averager import Averager
from distqat.averaging.group import Invite, Join, Vote
from distqat.averaging.messages import Fetch, JoinReply, SliceHeader
from distqat.averaging.outer import OuterState
from distqat.errors import DeadlineError, MessageError, RefusedError, TensorError
from distqat.ids import short
from distqat.rpc.transport import Caller, Service, Stream


def services(averager: Averager) -> list[Service]:
    """What a server answers for the averager."""
    answers = _Answers(averager)
    calls = {
        messages.INVITE.name: answers.invite,
        messages.JOIN.name: answers.join,
        messages.VOTE.name: answers.vote,
    }
    return [
        Service(messages.AVERAGING, calls, {messages.EXCHANGE.name: answers.exchange}),
        Service(messages.STATE, streams={messages.FETCH.name: answers.fetch}),
    ]


class _Answers:
    """The handlers."""

    def __init__(self, averager: Averager) -> None:
        self.averager = averager
        self.context = averager.context

    async def invite(self, request: bytes, caller: Caller) -> bytes:
        """Will this sibling join at its next step boundary?"""
        invite = messages.decode(Invite, request)
        self.context.check_round(invite.round)
        self._state()
        self.averager.heard_from(invite.leader)
        return messages.encode(self.averager.lobby.consider(invite))

    async def join(self, request: bytes, caller: Caller) -> bytes:
        """Answered when the round has formed."""
        join = messages.decode(Join, request)
        self.context.check_round(join.round)
        state = self._state()
        if join.elements != self.context.num_elements:
            raise TensorError(
                f"{short(join.peer)} has {join.elements} elements of stage {self.context.stage}, "
                f"{short(self.context.me)} has {self.context.num_elements}"
            )
        self.averager.heard_from(join.peer)
        if join.round.number < state.round:
            return messages.encode(JoinReply(stale=self.averager.committed.offer(state)))
        return messages.encode(await self.averager.lobby.wait(join))

    async def exchange(self, stream: Stream, caller: Caller) -> None:
        """One member's slice up, the average of it down."""
        header, payload = messages.unframe(SliceHeader, await self._first(stream))
        exchange = await self.averager.pursuit.exchanges.find(header.attempt, self.context.waits.progress)
        await exchange.owner.serve(stream, header, payload)

    async def vote(self, request: bytes, caller: Caller) -> bytes:
        """Answered with the verdict."""
        vote = messages.decode(Vote, request)
        ballot = self.averager.pursuit.leader.ballot(vote.attempt)
        ballot.cast(vote)
        return messages.encode(await ballot.wait())

    async def fetch(self, stream: Stream, caller: Caller) -> None:
        """The committed state, for a newcomer."""
        request = messages.decode(Fetch, await self._first(stream))
        self.context.check(request.run, request.stage)
        await catchup.donate(self._state(), stream, self.context.waits.answer)

    def _state(self) -> OuterState:
        """What is committed here; without it this sibling takes no part. Raises RefusedError."""
        if self.averager.outer is None:
            raise RefusedError(f"{short(self.context.me)} has no committed state yet")
        return self.averager.outer

    async def _first(self, stream: Stream) -> bytes:
        seconds = self.context.waits.progress
        try:
            async with asyncio.timeout(seconds):
                message = await stream.receive()
        except TimeoutError:
            raise DeadlineError(f"a stream without a message for {seconds:g} s") from None
        if message is None:
            raise MessageError("a stream without a message")
        return message
