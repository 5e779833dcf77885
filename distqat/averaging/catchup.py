"""Committed state from a donor to a sibling that lacks it: a manifest, then anchor and momentum in chunks.

The donor streams a state that never changes, so nothing is locked while rounds go on.
"""

from __future__ import annotations

import asyncio

from distqat.averaging import messages
from distqat.averaging.context import Context
from distqat.averaging.messages import Fetch, Manifest, StateHeader
from distqat.averaging.outer import OuterState
from distqat.errors import DeadlineError, MessageError, StateError
from distqat.ids import Endpoint, PeerId, short
from distqat.rpc.transport import Stream
from distqat.wire import frames, tensors
from distqat.wire.frames import Assembler

ANCHOR = "anchor"
MOMENTUM = "momentum"
BYTES_PER_ELEMENT = 4


async def fetch(context: Context, donor: PeerId, endpoint: Endpoint) -> OuterState:
    """The donor's committed state. Raises StateError when it is not what it says, or another DistqatError."""
    async with context.transport.stream(endpoint, messages.FETCH) as stream:
        await stream.send(messages.encode(Fetch(context.run, context.stage)))
        await stream.finish()
        manifest, payload = await _receive(context, donor, stream)
    state = await context.work(lambda: _decode(manifest, payload))
    if state.digest != manifest.digest:
        raise StateError(f"the state from {short(donor)} does not match its digest")
    return state


async def donate(state: OuterState, stream: Stream, patience: float) -> None:
    """Stream the state; the request has been read. Raises DeadlineError when a chunk is not taken in time."""
    headers, payload = tensors.encode({ANCHOR: state.anchor, MOMENTUM: state.momentum})
    manifest: Manifest | None = Manifest(state.round, state.digest, tuple(headers))
    for chunk, parts in frames.chunks(payload):
        frame = messages.frame(StateHeader(manifest, chunk), *parts)
        try:
            async with asyncio.timeout(patience):
                await stream.send(frame)
        except TimeoutError:
            raise DeadlineError(f"the newcomer took nothing for {patience:g} s") from None
        manifest = None


def _decode(manifest: Manifest, payload: memoryview) -> OuterState:
    parts = tensors.decode(manifest.tensors, payload)
    return OuterState.of(parts[ANCHOR], parts[MOMENTUM], manifest.round)


async def _receive(context: Context, donor: PeerId, stream: Stream) -> tuple[Manifest, memoryview]:
    expected = {ANCHOR: ((context.num_elements,), "float32"), MOMENTUM: ((context.num_parameters,), "float32")}
    assembler = Assembler(BYTES_PER_ELEMENT * (context.num_elements + context.num_parameters))
    manifest: Manifest | None = None
    while True:
        header, data = messages.unframe(StateHeader, await _next(context, donor, stream))
        if manifest is None:
            manifest = header.manifest
            found = {} if manifest is None else {part.name: (part.shape, part.dtype) for part in manifest.tensors}
            if found != expected:
                raise MessageError(f"the state from {short(donor)} is not that of this stage: it holds {found}")
        payload = assembler.add(header.chunk, data)
        if payload is not None:
            assert manifest is not None
            return manifest, payload


async def _next(context: Context, donor: PeerId, stream: Stream) -> bytes:
    try:
        async with asyncio.timeout(context.waits.progress):
            frame = await stream.receive()
    except TimeoutError:
        raise DeadlineError(f"no state from {short(donor)} for {context.waits.progress:g} s") from None
    if frame is None:
        raise StateError(f"the state from {short(donor)} ended before it was whole")
    return frame
