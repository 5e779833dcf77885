"""The trainer's end: samples out of memory that the data server shares, or over the network where it is elsewhere.

A batch that is mapped stays leased for as long as anything refers to its arrays, and no longer. Whether the server is
on the same host is tried, not assumed: its door has to be there, with the nonce that it has told.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distqat.aio import Backoff
from distqat.data.server.blocks import FOLDER, is_door, map_block
from distqat.data.server.layout import Layout
from distqat.data.server.messages import TAKE, Ask, Hello, Piece, Ping, Place, Release, Told, Wanted, Welcome
from distqat.data.server.service import MOST_WANTS, Waits
from distqat.data.sources.splits import Arrays
from distqat.errors import DataError, DeadlineError, DistqatError, MessageError, UnreachableError
from distqat.ids import Endpoint, RunId
from distqat.rpc.transport import Stream, Transport
from distqat.telemetry import Reason
from distqat.wire.frames import Assembler, Chunk

log = logging.getLogger(__name__)

SLOW_SECONDS = 1.0
"""After which a request is said to wait."""

Locate = Callable[[], Awaitable[Endpoint]]
"""Where the data server answers now. Raises DistqatError."""


@dataclass(eq=False)
class _Open:
    """A request that waits."""

    want: Wanted
    answer: asyncio.Future[Arrays]
    pieces: Assembler
    since: float
    line: _Line | None = None
    """Over which it is asked; None: not yet."""


@dataclass(eq=False)
class _Line:
    """One connection."""

    welcome: Welcome
    is_mapped: bool
    out: asyncio.Queue[Ask] = field(default_factory=asyncio.Queue)
    unanswered: set[int] = field(default_factory=set)
    """Serials, also of those for whom nobody waits any more."""


class Feed:
    """The samples of a run, from its data server, wherever that is now. `work` has to run meanwhile."""

    def __init__(
        self, transport: Transport, locate: Locate, run: RunId, folder: Path = FOLDER, waits: Waits | None = None
    ) -> None:
        self._transport = transport
        self._locate = locate
        self._run = run
        self._folder = folder  # Where the shared memory of this host lies.
        self._waits = waits or Waits()
        self._reason = Reason(log, "waiting: the data server is not known yet")  # Why nothing comes; empty: it does.
        self._first: Welcome | None = None  # What the first server had; another one must have the same.
        self._line: _Line | None = None  # None while there is no connection.
        self._open: dict[int, _Open] = {}  # By serial.
        self._serial = 0
        self._ready = asyncio.Event()  # Set when a server has answered once.

    def __repr__(self) -> str:
        return f"<Feed of {self._run.name}: {self.link}, {len(self._open)} wait>"

    @property
    def link(self) -> str:
        """How samples come, in a word or two."""
        if self._line is None:
            return "away"
        return "mapped" if self._line.is_mapped else "sent"

    @property
    def waiting(self) -> str:
        if self._reason.text:
            return self._reason.text
        asked = next(iter(self._open.values()), None)
        if asked is None or asyncio.get_running_loop().time() < asked.since + SLOW_SECONDS:
            return ""
        return f"waiting: the data server makes samples {asked.want.begin} to {asked.want.end}"

    @property
    def num_samples(self) -> int:
        return self._known.samples

    @property
    def num_held_out(self) -> int:
        return self._known.held_out

    @property
    def _known(self) -> Welcome:
        if self._first is None:
            raise DataError(self._reason.text)
        return self._first

    @property
    def is_ready(self) -> bool:
        """Whether a server has answered once: only then it is known how many samples there are."""
        return self._ready.is_set()

    async def wait_ready(self, seconds: float | None = None) -> None:
        """Until a server has answered once, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ready.wait()

    async def train(self, begin: int, end: int) -> Arrays:
        return await self._read(False, begin, end)

    async def held_out(self, begin: int, end: int) -> Arrays:
        return await self._read(True, begin, end)

    async def _read(self, held_out: bool, begin: int, end: int) -> Arrays:
        """Cut at the ends of slots: what lies in one is not copied, the rest is put together, one after the other."""
        await self._ready.wait()
        rows = self._known.rows
        if begin // rows == (end - 1) // rows:
            return await self._ask(held_out, begin, end)
        whole = Layout(self._known.columns).empty(end - begin)
        at = begin
        while at < end:
            stop = min(end, (at // rows + 1) * rows)
            for name, part in (await self._ask(held_out, at, stop)).items():
                whole[name][at - begin : stop - begin] = part
            at = stop
        return whole

    async def _ask(self, held_out: bool, begin: int, end: int) -> Arrays:
        self._serial += 1
        want = Wanted(self._serial, held_out, begin, end, False)
        limit = Layout(self._known.columns).row_bytes * (end - begin)
        loop = asyncio.get_running_loop()
        asked = _Open(want, loop.create_future(), Assembler(limit), loop.time())
        self._open[want.serial] = asked
        try:
            if self._line is not None:
                self._want_more(self._line)
            return await asked.answer
        finally:
            del self._open[want.serial]

    def _want_more(self, line: _Line) -> None:
        """Ask for what was not asked for over this line; no more at the same time than the server allows."""
        for asked in self._open.values():
            if len(line.unanswered) >= MOST_WANTS:
                return
            if asked.line is not line:
                want = asked.want
                asked.line, asked.pieces = line, Assembler(asked.pieces.limit)
                line.unanswered.add(want.serial)
                line.out.put_nowait(Ask(want=Wanted(want.serial, want.held_out, want.begin, want.end, line.is_mapped)))

    def _answered(self, line: _Line, serial: int) -> None:
        line.unanswered.discard(serial)
        self._want_more(line)

    async def work(self) -> None:
        """Keep a connection, for ever."""
        backoff = Backoff(0.05, 2.0)
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._connect()
            except DistqatError as error:
                self._reason.set(f"waiting: the data server: {error.reason}")
            finally:
                self._line = None
            if _is_cancelled():
                # In the moment in which the connection broke, so that its error hid it.
                raise asyncio.CancelledError
            if asyncio.get_running_loop().time() - began > self._waits.silence:
                backoff.reset()
            await asyncio.sleep(backoff.next())

    async def _connect(self) -> None:
        """Until the connection breaks. Raises DistqatError."""
        endpoint = await self._locate()
        async with self._transport.stream(endpoint, TAKE) as stream:
            await stream.send(Ask(hello=Hello(self._run)).encode())
            told, _ = await self._receive(stream, endpoint)
            line = self._line = await self._greet(told)
            self._want_more(line)
            self._reason.text = ""
            self._ready.set()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._keep_sending(stream, line))
                    group.create_task(self._keep_pinging(line))
                    await self._keep_receiving(stream, line, endpoint)
            except* DistqatError as errors:
                raise _first(errors) from None

    async def _greet(self, told: Told) -> _Line:
        """Raises MessageError, DataError."""
        welcome = told.welcome
        if welcome is None:
            raise MessageError("the first message says nothing of samples")
        if fault := Layout(welcome.columns).fault():
            raise MessageError(fault)
        known = self._first or welcome
        has, had = ((w.samples, w.held_out, w.rows, w.columns) for w in (welcome, known))
        if has != had:
            raise DataError(f"it has other data than before: {has}, not {had}")
        self._first = known
        is_here = await asyncio.to_thread(is_door, welcome.door, welcome.nonce, self._folder)
        log.info("samples come from the data server %s", "through shared memory" if is_here else "over the network")
        return _Line(welcome, is_here)

    async def _keep_pinging(self, line: _Line) -> None:
        while True:
            await asyncio.sleep(self._waits.ping)
            line.out.put_nowait(Ask(ping=Ping()))

    async def _keep_sending(self, stream: Stream, line: _Line) -> None:
        while True:
            ask = await line.out.get()
            try:
                async with asyncio.timeout(self._waits.silence):
                    await stream.send(ask.encode())
            except TimeoutError:
                raise DeadlineError(f"it took nothing for {self._waits.silence:g} s") from None

    async def _keep_receiving(self, stream: Stream, line: _Line, endpoint: Endpoint) -> None:
        while True:
            told, payload = await self._receive(stream, endpoint)
            if told.place is not None:
                await self._placed(line, told.place)
                self._answered(line, told.place.serial)
            elif told.piece is not None:
                self._sent(told.piece, payload)
                if told.piece.offset + len(payload) >= told.piece.total:
                    self._answered(line, told.piece.serial)
            elif told.fault is not None:
                if (asked := self._open.get(told.fault.serial)) is not None:
                    _fail(asked, DataError(told.fault.reason))
                self._answered(line, told.fault.serial)

    async def _receive(self, stream: Stream, endpoint: Endpoint) -> tuple[Told, memoryview]:
        silence = self._waits.silence
        try:
            async with asyncio.timeout(silence):
                data = await stream.receive()
        except TimeoutError:
            raise DeadlineError(f"nothing was heard from {endpoint} for {silence:g} s") from None
        if data is None:
            raise UnreachableError(f"the data server at {endpoint} has ended the stream")
        return Told.decode(data)

    async def _placed(self, line: _Line, place: Place) -> None:
        """Samples lie there: their arrays share that memory. Raises DataError, MessageError."""
        asked = self._open.get(place.serial)
        if asked is None:
            line.out.put_nowait(Ask(release=Release(place.lease)))
            return
        layout, count = Layout(line.welcome.columns), asked.want.end - asked.want.begin
        block = map_block(place.block, self._folder)
        if layout.slot_bytes(line.welcome.rows) > len(block) or place.row + count > line.welcome.rows:
            raise MessageError(f"samples from row {place.row} on do not lie in the block {place.block}")
        arrays = layout.views(memoryview(block), line.welcome.rows, place.row, count)
        if place.brief:
            arrays = {name: array.copy() for name, array in arrays.items()}
            line.out.put_nowait(Ask(release=Release(place.lease)))
        else:
            # When nobody refers to the arrays any more; whichever thread that is in.
            let_go = weakref.finalize(block, _let_go, asyncio.get_running_loop(), line.out, place.lease)
            let_go.atexit = False
        _resolve(asked, arrays)

    def _sent(self, piece: Piece, payload: memoryview) -> None:
        """A part of the samples has come. Raises MessageError."""
        asked = self._open.get(piece.serial)
        if asked is None:
            return
        whole = asked.pieces.add(Chunk(piece.offset, piece.total), payload)
        if whole is not None:
            count = asked.want.end - asked.want.begin
            layout = Layout(self._known.columns)
            if len(whole) != layout.row_bytes * count:
                raise MessageError(f"{len(whole)} bytes of {count} samples")
            arrays = layout.parse(whole, count)
            # What came in one piece cannot be written to, and its arrays may not be aligned to their elements.
            _resolve(asked, {name: np.require(array, requirements=["A", "W"]) for name, array in arrays.items()})


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _resolve(asked: _Open, arrays: Arrays) -> None:
    if not asked.answer.done():
        asked.answer.set_result(arrays)


def _fail(asked: _Open, error: DataError) -> None:
    if not asked.answer.done():
        asked.answer.set_exception(error)


def _let_go(loop: asyncio.AbstractEventLoop, out: asyncio.Queue[Ask], lease: int) -> None:
    """Nobody refers to the arrays of a lease any more."""
    with suppress(RuntimeError):  # The loop is closed: the server has seen the connection end.
        loop.call_soon_threadsafe(out.put_nowait, Ask(release=Release(lease)))


def _first(errors: BaseExceptionGroup[DistqatError]) -> DistqatError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DistqatError)
    return error
