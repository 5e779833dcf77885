"""The side that answers: invitations, joins, slices and votes of siblings. Who asks for state is `state.donor`'s."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from distqat.averaging import messages, terms
from distqat.averaging.averager import Averager
from distqat.averaging.events import Departed
from distqat.averaging.group import Invite, Join, Leave, Vote
from distqat.averaging.messages import SliceHeader
from distqat.averaging.outer import OuterState
from distqat.averaging.way import State
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
        messages.LEAVE.name: answers.leave,
        messages.PROBE.name: answers.probe,
    }
    return [
        Service(messages.AVERAGING, calls, {messages.EXCHANGE.name: answers.exchange}),
        averager.donor.service(),
    ]


class _Answers:
    """The handlers."""

    def __init__(self, averager: Averager) -> None:
        self.context = averager.context
        self.committed = averager.committed
        self.pursuit = averager.pursuit
        self.averager = averager

    async def invite(self, request: bytes, caller: Caller) -> bytes:
        """Will this sibling join at its next step boundary?"""
        invite = messages.decode(Invite, request)
        self.context.check_round(invite.round)
        self._state()
        reply = self.pursuit.consider(invite)
        # One that rests comes when its step is done; one that takes a round already does not wait for a step.
        is_resting = reply.joining and self.pursuit.round.state is State.RESTING
        return messages.encode(replace(reply, held_up=is_resting and self.averager.is_held_up()))

    async def join(self, request: bytes, caller: Caller) -> bytes:
        """Answered when the round has formed."""
        join = messages.decode(Join, request)
        self.context.check_round(join.round)
        self._state()
        elements = self.context.elements(self.context.phase(join.round.number))
        if join.elements != elements:
            raise TensorError(
                f"{short(join.peer)} has {join.elements} elements for {join.round}, "
                f"{short(self.context.me)} has {elements}"
            )
        fault = terms.fault(join)
        if fault:
            self.context.on_refused(join.peer, fault)
            raise TensorError(f"{short(join.peer)} joins with {fault}")
        # Before the first round everybody is waited for: nobody goes on alone.
        is_held_up = self.averager.is_held_up if self.pursuit.round.quorum.base else lambda: False
        return messages.encode(await self.pursuit.lobby.join(join, self.context.waits.form, is_held_up))

    async def exchange(self, stream: Stream, caller: Caller) -> None:
        """One member's slice up, the average of it down."""
        header, payload = messages.unframe(SliceHeader, await self._first(stream))
        exchange = await self.pursuit.exchanges.find(header.attempt, self.context.waits.progress)
        await exchange.owner.serve(stream, header, payload)

    async def vote(self, request: bytes, caller: Caller) -> bytes:
        """Answered with the verdict."""
        return messages.encode(await self.pursuit.lobby.vote(messages.decode(Vote, request)))

    async def leave(self, request: bytes, caller: Caller) -> bytes:
        """A sibling gives its stage up."""
        leave = messages.decode(Leave, request)
        self.context.check(leave.run, leave.stage)
        self.pursuit.feed(Departed(leave.peer))
        return b""

    async def probe(self, request: bytes, caller: Caller) -> bytes:
        """Somebody who waits here wants to know whether this sibling answers."""
        return b""

    def _state(self) -> OuterState:
        """What is committed here; without it this sibling takes no part. Raises RefusedError."""
        if self.committed.outer is None:
            raise RefusedError(f"{short(self.context.me)} has no committed state yet")
        return self.committed.outer

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
