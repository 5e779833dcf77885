"""What a mirror gives: what is committed now, or was when a checkpoint was made, of all stages under one service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from distqat.averaging import messages
from distqat.averaging.committed import Committed
from distqat.averaging.context import Context
from distqat.averaging.kept import Shelf
from distqat.averaging.outer import OuterState
from distqat.averaging.state.donor import Donor
from distqat.averaging.state.messages import AWAIT, DESCRIBE, FETCH, REPLAY, SERVICE, Await, Describe, Fetch, Replay
from distqat.errors import MessageError, RefusedError, StateError
from distqat.ids import StageIndex
from distqat.roles.checkpoint.keeper import Keeper
from distqat.roles.checkpoint.saver import OUTER, state_of
from distqat.rpc.transport import Caller, Service, Stream


class Stock:
    """The states of one stage: that which the mirror follows, and those of its checkpoints."""

    def __init__(self, context: Context, committed: Committed, keeper: Keeper) -> None:
        self.turn = asyncio.Lock()  # Held from the choice of a state until it is described.
        self.donor = Donor(context, self)
        self._context = context
        self._committed = committed
        self._keeper = keeper
        self._chosen: OuterState | None = None  # Out of a checkpoint; None: the one that is followed.

    def __repr__(self) -> str:
        return f"<Stock of stage {self._context.stage}: {self.outer}>"

    @property
    def outer(self) -> OuterState | None:
        """What is given now."""
        return self._chosen or self._committed.outer

    @property
    def kept(self) -> Shelf:
        """Averages of the latest rounds."""
        return self._committed.kept

    async def wait_other(self, digest: str) -> None:
        """Until something else is committed."""
        await self._committed.wait_other(digest)

    async def choose(self, digest: str) -> None:
        """Give the state of the checkpoint with that digest if there is one, else what is followed. Raises StateError;
        then the checkpoint is offered no more."""
        index = self._context.stage
        held = next((c for c in self._keeper.checkpoints if (c.stage, c.digest) == (index, digest)), None)
        if held is None:
            self._chosen = None
            return
        if self._chosen is None or self._chosen.digest != held.digest:
            manifest, groups = await self._keeper.read(held.stage, held.round, held.digest)
            build = partial(state_of, groups.get(OUTER, {}), manifest.checkpoint, self._context.shapes)
            try:
                self._chosen = await self._context.work(build)
            except StateError as error:
                self._keeper.refuse(held.stage, held.digest, error.reason)
                raise


class Archive:
    """Answers for all stages."""

    def __init__(self, stocks: Mapping[StageIndex, Stock]) -> None:
        self._stocks = stocks

    def __repr__(self) -> str:
        return f"<Archive of {len(self._stocks)} stages>"

    def service(self) -> Service:
        """To be added to a server."""
        calls = {DESCRIBE.name: self._describe, AWAIT.name: self._await}
        return Service(SERVICE, calls, {FETCH.name: self._fetch, REPLAY.name: self._replay})

    async def _describe(self, request: bytes, caller: Caller) -> bytes:
        asked = messages.decode(Describe, request)
        stock = self._stock(asked.stage)
        async with stock.turn:
            await stock.choose(asked.digest)
            return await stock.donor.describe(request, caller)

    async def _await(self, request: bytes, caller: Caller) -> bytes:
        return await self._stock(messages.decode(Await, request).stage).donor.tell(request, caller)

    async def _fetch(self, stream: Stream, caller: Caller) -> None:
        first = await self._first(stream)
        await self._stock(messages.decode(Fetch, first).stage).donor.fetch(_Begun(stream, first), caller)

    async def _replay(self, stream: Stream, caller: Caller) -> None:
        first = await self._first(stream)
        await self._stock(messages.decode(Replay, first).stage).donor.replay(_Begun(stream, first), caller)

    def _stock(self, stage: int) -> Stock:
        stock = self._stocks.get(StageIndex(stage))
        if stock is None:
            raise RefusedError(f"this mirror has no stage {stage} yet")
        return stock

    async def _first(self, stream: Stream) -> bytes:
        stock = next(iter(self._stocks.values()), None)
        if stock is None:
            raise RefusedError("this mirror has no stage yet")
        message = await stock.donor.next_message(stream)
        if message is None:
            raise MessageError("a stream without a message")
        return message


class _Begun:
    """A stream of which the first message was read already."""

    def __init__(self, stream: Stream, first: bytes) -> None:
        self._stream = stream
        self._first: bytes | None = first  # None when it has been given.

    async def send(self, data: bytes, more: bool = False) -> None:
        await self._stream.send(data, more)

    async def receive(self) -> bytes | None:
        first, self._first = self._first, None
        return first if first is not None else await self._stream.receive()

    async def finish(self) -> None:
        await self._stream.finish()
