"""The stream between neighbours on a route, in whole messages.

Knows the frames and which kinds of message may come when; not what they mean.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import replace

import torch

from distqat.errors import MessageError
from distqat.pipeline.messages import (
    Busy,
    Commit,
    Committed,
    Fault,
    Gradient,
    Header,
    Message,
    Microbatch,
    Open,
    Opened,
    Outcome,
    Ping,
    Pong,
    Settle,
    Settled,
    from_header,
    to_frames,
)
from distqat.rpc.transport import Stream
from distqat.wire import frames, tensors
from distqat.wire.codecs.codec import CPU
from distqat.wire.compression import Compression
from distqat.wire.frames import Chunk
from distqat.wire.linkrate import LinkRate
from distqat.wire.payload import NO_PAYLOAD, Payload
from distqat.wire.tensors import TensorHeader

NO_BYTES = memoryview(b"")

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
    Phase.OPEN: dict.fromkeys((Microbatch, Commit, Settle, Ping), Phase.OPEN),
    Phase.BROKEN: {},
}
"""What may come from above, and what phase follows."""

UPWARD: Rules = {
    Phase.OPENING: {Opened: Phase.OPEN, Fault: Phase.BROKEN},
    Phase.OPEN: dict.fromkeys((Gradient, Outcome, Committed, Settled, Busy, Pong), Phase.OPEN) | {Fault: Phase.BROKEN},
    Phase.BROKEN: {},
}
"""What may come from below, and what phase follows."""


class Hop:
    """One end of a hop. `rules` say what may come in."""

    def __init__(self, stream: Stream, rules: Rules, max_message: int, compression: Compression | None = None) -> None:
        """`compression` is of what this end sends; None: never."""
        self.phase = Phase.OPENING
        self.compression = compression if compression is not None else Compression("off")
        self._stream = stream
        self._rules = rules
        self._sending = asyncio.Lock()  # Frames of two messages never mix.
        self._max_message = max_message
        self._incoming = LinkRate()  # Told to the other end, which compresses by it.
        self._assembler = frames.Assembler(max_message)
        self._partial: tuple[Message, Header] | None = None  # What is not yet whole; None between messages.
        self.touched = 0.0  # When payload came last, also of a message that is not whole: a sign of life.
        self.began = 0.0  # When the first frame of the message that came last, or is coming, was there.

    def __repr__(self) -> str:
        return f"<Hop {self.phase.value}>"

    @property
    def link_rate(self) -> float:
        """Bytes per second that the other end gets of what this one sends; 0 while it is not known."""
        return self.compression.link_rate

    async def send(self, message: Message, payload: Payload = NO_PAYLOAD) -> None:
        """Send a message with its payload; waits while the other side is not keeping up. Raises RpcError.

        The end of a large payload may still be leaving when this returns; then what goes wrong with it is raised later.
        """
        async with self._sending:
            for frame in to_frames(self._stamped(message), payload):
                await self._stream.send(frame, more=len(payload) > 0)

    async def receive(self) -> tuple[Message, memoryview] | None:
        """The next whole message and its payload; None at the end. Raises RpcError, MessageError for garbage."""
        while (frame := await self._stream.receive()) is not None:
            if len(frame) > MAX_FRAME_BYTES:
                raise MessageError(f"a frame of {len(frame)} bytes; at most {MAX_FRAME_BYTES} are taken")
            whole = self._add(frame)
            if whole is not None:
                self._measure(*whole)
                return whole
        if self._partial is not None:
            raise MessageError(f"the stream ended within a {type(self._partial[0]).__name__}")
        return None

    async def finish(self) -> None:
        """Say that no more will be sent."""
        async with self._sending:
            await self._stream.finish()

    def _stamped(self, message: Message) -> Message:
        now = asyncio.get_running_loop().time()
        if isinstance(message, Ping | Pong):
            return replace(message, sent=now, link_rate=self._incoming.value)
        return replace(message, sent=now) if isinstance(message, Microbatch | Gradient) else message

    def _measure(self, message: Message, payload: memoryview) -> None:
        if isinstance(message, Microbatch | Gradient | Ping | Pong):
            self._incoming.came(len(payload), message.sent, asyncio.get_running_loop().time())
        if isinstance(message, Ping | Pong):
            self.compression.link_rate = message.link_rate

    def _add(self, frame: bytes) -> tuple[Message, memoryview] | None:
        header, part = frames.split(frame)
        now = asyncio.get_running_loop().time()
        if self._partial is None:
            self.began = now
        if len(part):
            self.touched = now
        expected = self._assembler.expected
        if self._partial is not None and expected is not None and header == self._partial[1].write(expected):
            return self._take(self._partial[0], expected, part)
        message, chunk = from_header(header)
        # A peer that fails in the middle of a message says so there.
        if self._partial is not None and not isinstance(message, Fault):
            if message != self._partial[0] or chunk is None:
                raise MessageError(f"a {type(message).__name__} within a {type(self._partial[0]).__name__}")
        else:
            self._enter(message)
            self._partial = None
        if chunk is not None:
            return self._take(message, chunk, part)
        if len(part):
            raise MessageError(
                f"a {type(message).__name__} with {len(part)} bytes of payload that it does not speak of"
            )
        return message, NO_BYTES

    def _take(self, message: Message, chunk: Chunk, part: memoryview) -> tuple[Message, memoryview] | None:
        payload = self._assembler.add(chunk, part)
        if payload is None:
            self._partial = self._partial or (message, Header(message))
            return None
        self._partial = None
        return message, payload

    def _enter(self, message: Message) -> None:
        if isinstance(message, Microbatch | Gradient):
            raw = tensors.raw_bytes(message.tensors)
            if raw > self._max_message:
                raise MessageError(f"a message of {raw} bytes of tensors; at most {self._max_message} are taken")
        following = self._rules[self.phase].get(type(message))
        if following is None:
            raise MessageError(f"a message of kind {type(message).__name__} on a hop that is {self.phase.value}")
        self.phase = following


async def pack(
    named: Mapping[str, tensors.Sent], codec: str | Mapping[str, str], compression: Compression | None = None
) -> tuple[tuple[TensorHeader, ...], Payload]:
    """Encode tensors, each with the codec that is named for it; large ones on a thread, so that the loop goes on.

    `compression` is that of the hop that will carry them. Raises TensorError.
    """
    if not named:
        return (), NO_PAYLOAD
    work = sum(tensors.work(tensor, tensors.codec_of(name, tensor, codec)) for name, tensor in named.items())
    is_wanted = compression is not None and any(compression.is_wanted(tensor.nbytes) for tensor in named.values())
    if work <= INLINE_BYTES and not is_wanted:
        headers, payload = tensors.encode(named, codec, compression)
    else:
        headers, payload = await asyncio.to_thread(tensors.encode, named, codec, compression)
    return tuple(headers), payload


async def unpack(
    headers: tuple[TensorHeader, ...], payload: memoryview, device: torch.device = CPU
) -> dict[str, torch.Tensor]:
    """Decode tensors onto the device; large ones on a thread. They may share memory with the payload.

    Raises MessageError.
    """
    # Whatever travels as it is stays where it is.
    work = sum(header.bytes for header in headers if header.raw or header.codec != tensors.EXACT or device != CPU)
    if work <= INLINE_BYTES:
        return tensors.decode(headers, payload, device)
    return await asyncio.to_thread(tensors.decode, headers, payload, device)
