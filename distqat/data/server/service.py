"""The answering side: lets workers fill the ring, and tells trainers where samples lie, or sends them.

All in one event loop, which never reads or computes samples itself: so it answers at once, however slow a source is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from distqat.data.server.blocks import Block
from distqat.data.server.layout import Layout
from distqat.data.server.messages import (
    MAX_REASON,
    SERVICE,
    TAKE,
    Ask,
    Fault,
    Piece,
    Ping,
    Place,
    Told,
    Wanted,
    Welcome,
)
from distqat.data.server.ring import Grant, Job, Ring, Want
from distqat.errors import DeadlineError, MessageError, OverloadedError, WrongRunError
from distqat.ids import RunId
from distqat.rpc.transport import Caller, Service, Stream
from distqat.wire import frames
from distqat.wire.payload import Payload

MOST_WANTS = 64
"""Requests of one trainer that wait at the same time."""


@dataclass(frozen=True)
class Waits:
    """Seconds."""

    ping: float = 1.0
    """Between two signs of life of a trainer."""
    silence: float = 10.0
    """After which the other side is taken for lost."""


class Maker(Protocol):
    """Makes samples; one of several."""

    async def make(self, job: Job, block: str) -> str:
        """Make a part of a slot in that block; why it cannot be made, or nothing."""
        ...


class Memory(Protocol):
    """Where blocks come from."""

    def make(self, size: int) -> Block:
        """A new one."""
        ...


@dataclass(frozen=True)
class Offer:
    """What is served: which run, how its samples lie, what stands at the door."""

    run: RunId
    layout: Layout
    door: str
    nonce: bytes
    samples: int
    held_out: int


class Pantry:
    """The ring with its memory and its workers; made by `open_pantry`."""

    def __init__(self, offer: Offer, ring: Ring, slots: list[Block], memory: Memory) -> None:
        self.offer = offer
        self.ring = ring
        self.num_trainers = 0
        self._slots = slots  # By number.
        self._memory = memory
        self._waiting: dict[tuple[int, int], asyncio.Future[Grant]] = {}  # By holder and serial.
        self._changed = asyncio.Event()  # Set, and replaced, whenever there may be something to make.
        self._holders = 0  # That ever came.

    def __repr__(self) -> str:
        return f"<Pantry {self.ring!r}, {self.num_trainers} trainers>"

    def service(self, waits: Waits | None = None) -> Service:
        """What a server answers for it."""
        limits = waits or Waits()

        async def take(stream: Stream, caller: Caller) -> None:
            await _Customer(self, stream, limits).serve()

        return Service(SERVICE, streams={TAKE.name: take})

    def enter(self) -> int:
        """A number for another trainer."""
        self._holders += 1
        self.num_trainers += 1
        return self._holders

    def leave(self, holder: int) -> None:
        """It is gone: its places are for others, in another block of memory."""
        self.num_trainers -= 1
        self.ring.reclaim(holder)
        self._notify()

    async def get(self, want: Want) -> Grant:
        """Wait until it is there, and lease it. Raises MessageError for what does not exist."""
        if fault := self.ring.fault_of(want):
            raise MessageError(fault)
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._waiting[want.holder, want.serial] = future
        self.ring.ask(want)
        self._settle()
        try:
            return await future
        finally:
            self._waiting.pop((want.holder, want.serial), None)

    def release(self, holder: int, lease: int) -> None:
        """It reads there no more."""
        self.ring.release(holder, lease)
        self._notify()

    def payload(self, grant: Grant) -> Payload:
        """The samples, tightly."""
        count = grant.want.end - grant.want.begin
        slot = self._slots[grant.slot].view
        places = self.offer.layout.places(self.ring.sizes.rows)
        begins = [(offset + grant.row * column.row_bytes, column.row_bytes * count) for column, offset in places]
        return Payload([slot[begin : begin + size] for begin, size in begins])

    def block(self, grant: Grant) -> str:
        """The name of the block in which they lie."""
        return self._slots[grant.slot].name

    async def keep_making(self, maker: Maker) -> None:
        """Let one worker make what is missing, for ever. Raises what it raises, and OSError: there is no memory."""
        while True:
            while (job := self.ring.next_job()) is None:
                await self._changed.wait()
            if job.renews:
                self._renew(job.slot)
            fault = await maker.make(job, self._slots[job.slot].name)
            self.ring.made(job, fault)
            self._settle()

    def _renew(self, slot: int) -> None:
        """Another block; who reads the old one keeps it."""
        old = self._slots[slot]
        old.path.unlink(missing_ok=True)
        self._slots[slot] = self._memory.make(len(old.view))

    def _settle(self) -> None:
        for grant in self.ring.settle():
            future = self._waiting.get((grant.want.holder, grant.want.serial))
            if future is not None and not future.done():
                future.set_result(grant)
            else:
                self.ring.release(grant.want.holder, grant.lease)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@asynccontextmanager
async def open_pantry(pantry: Pantry, makers: Sequence[Maker]) -> AsyncIterator[asyncio.TaskGroup]:
    """Let all of them make what is missing, until the end of the block."""
    async with asyncio.TaskGroup() as group:
        making = [group.create_task(pantry.keep_making(maker), name=f"{maker!r}") for maker in makers]
        try:
            yield group
        finally:
            for task in making:
                task.cancel()


class _Customer:
    """One trainer's stream."""

    def __init__(self, pantry: Pantry, stream: Stream, waits: Waits) -> None:
        self._pantry = pantry
        self._stream = stream
        self._waits = waits
        self._out: asyncio.Queue[tuple[Told, Grant | None]] = asyncio.Queue()  # With a grant: its samples are sent.
        self._num_wants = 0  # That wait.

    async def serve(self) -> None:
        """Until it leaves, or nothing is heard of it. Raises RpcError."""
        hello = (await self._receive()).hello
        offer, rows = self._pantry.offer, self._pantry.ring.sizes.rows
        if hello is None:
            raise MessageError("the first message must say for which run it is")
        if hello.run != offer.run:
            raise WrongRunError(f"asked for samples of run {hello.run}, but these are of run {offer.run}")
        columns = offer.layout.columns
        welcome = Welcome(offer.door, offer.nonce, offer.samples, offer.held_out, rows, columns)
        holder = self._pantry.enter()
        try:
            await self._send(Told(welcome=welcome).encode())
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._keep_sending(holder))
                try:
                    while (ask := await self._next()) is not None:
                        self._answer(holder, ask, group)
                finally:
                    sending.cancel()
        finally:
            self._pantry.leave(holder)

    def _answer(self, holder: int, ask: Ask, group: asyncio.TaskGroup) -> None:
        if ask.ping is not None:
            self._out.put_nowait((Told(pong=Ping()), None))
        elif ask.release is not None:
            self._pantry.release(holder, ask.release.lease)
        elif ask.want is not None:
            if self._num_wants >= MOST_WANTS:
                raise OverloadedError(f"{MOST_WANTS} requests wait already")
            self._num_wants += 1
            group.create_task(self._get(holder, ask.want))
        else:
            raise MessageError("who has introduced itself already")

    async def _get(self, holder: int, wanted: Wanted) -> None:
        try:
            grant = await self._pantry.get(Want(holder, wanted.serial, wanted.held_out, wanted.begin, wanted.end))
        finally:
            self._num_wants -= 1
        if grant.fault:
            self._out.put_nowait((Told(fault=Fault(wanted.serial, grant.fault[:MAX_REASON])), None))
        elif wanted.mapped:
            block = self._pantry.block(grant)
            place = Place(wanted.serial, grant.lease, block, grant.row, grant.is_brief)
            self._out.put_nowait((Told(place=place), None))
        else:
            self._out.put_nowait((Told(piece=Piece(wanted.serial, 0, 0)), grant))

    async def _keep_sending(self, holder: int) -> None:
        while True:
            told, grant = await self._out.get()
            if grant is None:
                await self._send(told.encode())
                continue
            for chunk, views in frames.chunks(self._pantry.payload(grant)):
                piece = Piece(grant.want.serial, chunk.offset, chunk.total)
                await self._send(Told(piece=piece).encode(Payload(views)))
            self._pantry.release(holder, grant.lease)

    async def _next(self) -> Ask | None:
        """The next message; None when it sends no more."""
        silence = self._waits.silence
        try:
            async with asyncio.timeout(silence):
                data = await self._stream.receive()
        except TimeoutError:
            raise DeadlineError(f"nothing was heard of the trainer for {silence:g} s") from None
        return Ask.decode(data) if data is not None else None

    async def _receive(self) -> Ask:
        ask = await self._next()
        if ask is None:
            raise MessageError("a stream without a message")
        return ask

    async def _send(self, data: bytes) -> None:
        silence = self._waits.silence
        try:
            async with asyncio.timeout(silence):
                await self._stream.send(data)
        except TimeoutError:
            raise DeadlineError(f"the trainer took nothing for {silence:g} s") from None
