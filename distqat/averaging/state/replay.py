"""The averages of rounds that were missed, from one donor, applied one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from distqat.averaging import kept, messages
from distqat.averaging.context import Context, Sibling
from distqat.averaging.kept import Kept
from distqat.averaging.outer import OuterState
from distqat.averaging.state.messages import REPLAY, ReplayHeader
from distqat.averaging.state.messages import Replay as ReplayRequest
from distqat.errors import DeadlineError, MessageError
from distqat.ids import short
from distqat.rpc.transport import Stream
from distqat.wire.frames import Assembler


class Replay:
    """A state on its way through the rounds that it missed; what a donor gave before it broke off counts."""

    def __init__(self, context: Context, state: OuterState) -> None:
        self.context = context
        self.state = state
        self.rounds: list[Kept] = []  # That are applied, in order.

    def __repr__(self) -> str:
        return f"<Replay of {len(self.rounds)} rounds to {self.state}>"

    async def take(self, donor: Sibling) -> None:
        """Apply all rounds that the donor keeps, each checked by its digest. Raises DistqatError."""
        context, state = self.context, self.state
        async with context.transport.stream(donor.endpoint, REPLAY) as stream:
            await stream.send(messages.encode(ReplayRequest(context.run, context.stage, state.round, state.digest)))
            await stream.finish()
            while (first := await _next(context, donor, stream)) is not None:
                missed = await _round(context, donor, stream, first)
                if sum(len(known.payload) for known in (*self.rounds, missed)) > context.state_bytes:
                    raise MessageError(f"{short(donor.peer)} sends more averages than the whole state would take")
                how = context.phase(missed.round)
                self.state = await context.work(partial(kept.replay, self.state, missed, how))
                self.rounds.append(missed)


async def _round(context: Context, donor: Sibling, stream: Stream, first: bytes) -> Kept:
    """One round, of which the first frame is here. Raises MessageError."""
    header, data = messages.unframe(ReplayHeader, first)
    said = header.kept
    if said is None:
        raise MessageError("an average without a word of its round")
    expected = kept.encoded_bytes(said.codec, context.elements(context.phase(said.round)))
    if header.chunk.total != expected:
        raise MessageError(f"an average of {header.chunk.total} bytes where {expected} were expected")
    assembler = Assembler(expected)
    while (payload := assembler.add(header.chunk, data)) is None:
        header, data = messages.unframe(ReplayHeader, await _next(context, donor, stream))
    return Kept(said.round, said.before, said.digest, said.members, said.codec, payload, said.origins)


async def _next(context: Context, donor: Sibling, stream: Stream) -> bytes | None:
    async with limit(context, donor):
        return await stream.receive()


@asynccontextmanager
async def limit(context: Context, donor: Sibling) -> AsyncIterator[None]:
    """Turn a wait for a donor that takes too long into a DeadlineError that names it."""
    seconds = context.waits.progress
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineError(f"no state from {short(donor.peer)} for {seconds:g} s") from None
