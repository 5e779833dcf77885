"""The side that takes copies of a seat's local state: sizes are checked first, chunks by their hash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from distqat.averaging.context import Context, Sibling
from distqat.averaging.state.snapshot import hash_of
from distqat.errors import DeadlineError, MessageError
from distqat.ids import short
from distqat.roles.copies import messages
from distqat.roles.copies.copy import Copy, Layout, read
from distqat.roles.copies.messages import TAKE, CopyRequest
from distqat.rpc.transport import Stream
from distqat.wire.frames import Assembler


async def take(circle: Context, layout: Layout, donor: Sibling) -> Copy:
    """What the donor's stage holds between two steps. Raises DistqatError."""
    request = CopyRequest(circle.run, circle.stage)
    async with circle.transport.stream(donor.endpoint, TAKE) as stream:
        await stream.send(request.encode())
        await stream.finish()
        return await _receive(circle, layout, donor, stream, circle.waits.progress)


@asynccontextmanager
async def inherit(
    circle: Context, layout: Layout, donor: Sibling, accepted: asyncio.Event, patience: float
) -> AsyncIterator[Copy]:
    """What the donor's stage held in the end; on leaving without an error the donor is told that it is taken over.

    `accepted` is set when the donor waits for nothing but its routes to leave it, for which it has `patience` seconds.
    """
    request = CopyRequest(circle.run, circle.stage, is_last=True)
    async with circle.transport.stream(donor.endpoint, TAKE) as stream:
        await stream.send(request.encode())
        async with _within(circle.waits.answer, donor):
            messages.unframe(await stream.receive())
        accepted.set()
        yield await _receive(circle, layout, donor, stream, patience)
        await stream.finish()
        async with _within(circle.waits.answer, donor):
            await stream.receive()


async def _receive(circle: Context, layout: Layout, donor: Sibling, stream: Stream, patience: float) -> Copy:
    """All frames; `patience` is for the first, the others may take as long as any progress."""
    async with _within(patience, donor):
        header, data = messages.unframe(await stream.receive())
    manifest = header.copy
    if manifest is None:
        raise MessageError(f"{short(donor.peer)} sends a copy without a word of what it is")
    headers = layout.check(manifest, circle.shapes)
    size = sum(tensor.bytes for tensor in headers)
    assembler = Assembler(size)
    while True:
        if header.chunk.total != size:
            raise MessageError(f"a copy of {header.chunk.total} bytes where {size} were expected")
        if hash_of([data]) != header.hash:
            raise MessageError(f"the copy from {short(donor.peer)} has another hash than it says")
        payload = assembler.add(header.chunk, data)
        if payload is not None:
            return read(manifest, headers, payload)
        async with _within(circle.waits.progress, donor):
            header, data = messages.unframe(await stream.receive())


@asynccontextmanager
async def _within(seconds: float, donor: Sibling) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineError(f"no copy from {short(donor.peer)} for {seconds:g} s") from None
