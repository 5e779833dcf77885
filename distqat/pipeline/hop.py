"""The stream between neighbours on a route, in whole messages.

Knows the frames and which kinds of message may come when; not what they mean.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping

import torch

from distqat.errors import MessageError
from distqat.pipeline.messages import (
    Busy,
    Commit,
    Committed,
    Fault,
    Gradient,
    Message,
    Microbatch,
    Open,
    Opened,
    Outcome,
    Settle,
    Settled,
    from_header,
    to_frames,
)
from distqat.rpc.transport import Stream
from distqat.wire import frames, tensors
from distqat.wire.tensors import TensorHeader

NO_PAYLOAD = memoryview(b"")

MAX_FRAME_BYTES = frames.CHUNK_BYTES + frames.MAX_HEADER_BYTES + 16
"""A frame is a header and at most one chunk."""

INLINE_BYTES = 64 << 10
"""A smaller payload is encoded and decoded on the spot: handing it to a thread would take longer."""


class Phase(enum.Enum):
    """How far one direction of a hop is."""

    OPENING = "opening"
    OPEN = "open"
    BROKEN = "broken"


Rules = Mapping[Phase, Mapping[type, Phase]]

DOWNWARD: Rules = {
    Phase.OPENING: {Open: Phase.OPEN},
    Phase.OPEN: dict.fromkeys((Microbatch, Commit, Settle), Phase.OPEN),
    Phase.BROKEN: {},
}
"""What may come from above, and what phase follows."""

UPWARD: Rules = {
    Phase.OPENING: {Opened: Phase.OPEN, Fault: Phase.BROKEN},
    Phase.OPEN: dict.fromkeys((Gradient, Outcome, Committed, Settled, Busy), Phase.OPEN) | {Fault: Phase.BROKEN},
    Phase.BROKEN: {},
}
"""What may come from below, and what phase follows."""


class Hop:
    """One end of a hop. `rules` say what may come in."""

    def __init__(self, stream: Stream, rules: Rules, max_message: int) -> None:
        self.phase = Phase.OPENING
        self._stream = stream
        self._rules = rules
        self._sending = asyncio.Lock()  # Frames of two messages never mix.
        self._assembler = frames.Assembler(max_message)
        self._partial: Message | None = None  # The message whose payload is incomplete; None between messages.

    def __repr__(self) -> str:
        return f"<Hop {self.phase.value}>"

    async def send(self, message: Message, payload: memoryview = NO_PAYLOAD) -> None:
        """Send a message with its payload; waits while the other side is not keeping up. Raises RpcError."""
        async with self._sending:
            for frame in to_frames(message, payload):
                await self._stream.send(frame)

    async def receive(self) -> tuple[Message, memoryview] | None:
        """The next whole message and its payload; None at the end. Raises RpcError, MessageError for garbage."""
        while (frame := await self._stream.receive()) is not None:
            if len(frame) > MAX_FRAME_BYTES:
                raise MessageError(f"a frame of {len(frame)} bytes; at most {MAX_FRAME_BYTES} are taken")
            whole = self._add(frame)
            if whole is not None:
                return whole
        if self._partial is not None:
            raise MessageError(f"the stream ended within a {type(self._partial).__name__}")
        return None

    async def finish(self) -> None:
        """Say that no more will be sent."""
        async with self._sending:
            await self._stream.finish()

    def _add(self, frame: bytes) -> tuple[Message, memoryview] | None:
        header, part = frames.split(frame)
        message, chunk = from_header(header)
        # A peer that fails in the middle of a message says so there.
        if self._partial is not None and message != self._partial and not isinstance(message, Fault):
            raise MessageError(f"a {type(message).__name__} within a {type(self._partial).__name__}")
        if self._partial is None or isinstance(message, Fault):
            self._enter(message)
        if chunk is None:
            if len(part):
                raise MessageError(
                    f"a {type(message).__name__} with {len(part)} bytes of payload that it does not speak of"
                )
            return message, NO_PAYLOAD
        self._partial = message
        payload = self._assembler.add(chunk, part)
        if payload is None:
            return None
        self._partial = None
        return message, payload

    def _enter(self, message: Message) -> None:
        following = self._rules[self.phase].get(type(message))
        if following is None:
            raise MessageError(f"a message of kind {type(message).__name__} on a hop that is {self.phase.value}")
        self.phase = following


async def pack(named: Mapping[str, torch.Tensor], codec: str) -> tuple[tuple[TensorHeader, ...], memoryview]:
    """Encode tensors; large ones on a thread, so that the event loop goes on."""
    if not named:
        return (), NO_PAYLOAD
    size = sum(tensor.numel() * tensor.element_size() for tensor in named.values())
    if size <= INLINE_BYTES:
        headers, payload = tensors.encode(named, codec)
    else:
        headers, payload = await asyncio.to_thread(tensors.encode, named, codec)
    return tuple(headers), payload


async def unpack(headers: tuple[TensorHeader, ...], payload: memoryview) -> dict[str, torch.Tensor]:
    """Decode tensors; large ones on a thread. Raises MessageError."""
    if len(payload) <= INLINE_BYTES:
        return tensors.decode(headers, payload)
    return await asyncio.to_thread(tensors.decode, headers, payload)
