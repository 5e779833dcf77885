"""What neighbours on a route say to each other, as bytes and back: `words.py` has the dataclasses, protobuf the wire.

Nothing that comes in is believed before it is checked; whatever is wrong with it is a MessageError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from distqat.errors import MessageError
from distqat.ids import StageIndex
from distqat.model.agreement import Verdict
from distqat.pb import pipeline_pb2 as pb
from distqat.pipeline.hop_codecs import TIED
from distqat.pipeline.route import fault_of_seats
from distqat.pipeline.words import (
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
    Ping,
    Pong,
    Settle,
    Settled,
    payload_bytes,
)
from distqat.rpc import mirror
from distqat.rpc.transport import Lane, Method
from distqat.wire import frames
from distqat.wire.frames import Chunk
from distqat.wire.payload import NO_PAYLOAD, Payload
from distqat.wire.tensors import TensorHeader

__all__ = [
    "Busy",
    "Commit",
    "Committed",
    "Fault",
    "Gradient",
    "Message",
    "Microbatch",
    "Open",
    "Opened",
    "Outcome",
    "Ping",
    "Pong",
    "Settle",
    "Settled",
    "payload_bytes",
]

SERVICE = "distqat.v1.Pipeline"
HOP = Method(SERVICE, "Hop", Lane.HOP)

MAX_MICROBATCHES = 1 << 16
"""Of one step."""

MAX_TENSORS = 32
"""Of one message: inputs and targets."""

MAX_SUMS = 64
"""Sums that a task may report."""

MAX_REASON = 2000
"""Characters of a fault's reason; longer ones are cut."""

MAX_NORMS = 4096
"""Blocks of a model, and so stages."""

MAX_STREAK = 1 << 30
"""Good steps in a row that a loss scale may speak of."""


class Header:
    """What stands in every frame of one message."""

    def __init__(self, message: Message) -> None:
        self._header = pb.HopHeader()
        part = getattr(self._header, _KINDS[type(message)])
        part.SetInParent()
        mirror.fill(part, _shortened(message))

    def write(self, chunk: Chunk | None = None) -> bytes:
        """The header of the frame that carries this chunk."""
        if chunk is not None:
            self._header.chunk.offset, self._header.chunk.total = chunk.offset, chunk.total
        data: bytes = self._header.SerializeToString()
        return data


def to_frames(message: Message, payload: Payload = NO_PAYLOAD) -> Iterator[bytes]:
    """The frames of one message."""
    header = Header(message)
    if not len(payload):
        yield frames.join(header.write())
        return
    for chunk, parts in frames.chunks(payload):
        yield frames.join(header.write(chunk), *parts)


def from_header(data: memoryview) -> tuple[Message, Chunk | None]:
    """The message of a frame's header, and where the frame's payload belongs. Raises MessageError."""
    try:
        header = pb.HopHeader.FromString(bytes(data))
    except DecodeError:
        raise MessageError("not a message of a hop: its header cannot be read") from None
    kind = header.WhichOneof("kind")
    if kind is None:
        raise MessageError("a message of a kind that is not known; the peer may run another version")
    message = _shortened(mirror.read(_CLASSES[kind], getattr(header, kind)))
    fault = _CHECKS.get(type(message), _no_fault)(message)
    if fault:
        raise MessageError(f"{kind}: {fault}")
    chunk = Chunk(header.chunk.offset, header.chunk.total) if header.HasField("chunk") else None
    if payload_bytes(message) != (chunk.total if chunk is not None else 0):
        raise MessageError(f"a {kind} whose tensors take {payload_bytes(message)} bytes, with another payload")
    return message, chunk


def _shortened(message: Message) -> Message:
    return replace(message, reason=message.reason[:MAX_REASON]) if isinstance(message, Fault) else message


# What is wrong with a message; empty if nothing is.


def _no_fault(_: Message) -> str:
    return ""


def _fault_of_open(message: Open) -> str:
    seats = message.seats
    if not message.pipeline or message.epoch < 1:
        return "no pipeline or no epoch"
    return fault_of_seats(seats, seats[0].stage if seats else StageIndex(0)) or _fault_of_verdict(message.verdict)


def _fault_of_microbatch(message: Microbatch) -> str:
    if message.step < 1:
        return "steps are counted from 1"
    if not message.index < message.count <= MAX_MICROBATCHES:
        return f"index {message.index} of {message.count}"
    if not 1 <= message.samples <= message.batch_samples:
        return f"{message.samples} samples of {message.batch_samples}"
    if not math.isfinite(message.progress):
        return f"progress {message.progress}"
    if not 0 <= message.warmup < math.inf:
        return f"warmup {message.warmup}"
    return _fault_of_stamp(message) or _fault_of_tensors(message.tensors)


def _fault_of_gradient(message: Gradient) -> str:
    if [header.name for header in message.tensors[1:]] not in ([], [TIED]):
        return f"{len(message.tensors)} tensors"
    if len(message.square_norms) > MAX_NORMS:
        return f"{len(message.square_norms)} norms"
    # An overflow in fp16 makes them infinite or NaN; that is for the verdict.
    if any(norm < 0 for norm in message.square_norms):
        return "the square of a norm is negative"
    if len(message.sums) > MAX_SUMS:
        return f"{len(message.sums)} sums"
    return _fault_of_stamp(message) or _fault_of_tensors(message.tensors)


def _fault_of_stamp(message: Microbatch | Gradient | Ping | Pong) -> str:
    return "" if math.isfinite(message.sent) else f"sent at {message.sent}"


def _fault_of_tensors(headers: Iterable[TensorHeader]) -> str:
    names = [header.name for header in headers]
    if len(names) > MAX_TENSORS:
        return f"{len(names)} tensors in one message"
    return "two tensors of one name" if len(set(names)) < len(names) else ""


def _fault_of_outcome(message: Outcome) -> str:
    return f"{len(message.sums)} sums" if len(message.sums) > MAX_SUMS else ""


def _fault_of_commit(message: Commit) -> str:
    if message.step < 1 or message.samples < 1:
        return "no step or no samples"
    return _fault_of_verdict(message.verdict)


def _fault_of_committed(message: Committed | Opened) -> str:
    if isinstance(message, Committed) and not (math.isfinite(message.seconds) and message.seconds >= 0):
        return f"{message.seconds} seconds"
    return _fault_of_verdict(message.verdict)


def _fault_of_verdict(verdict: Verdict) -> str:
    scale = verdict.scale
    if not (math.isfinite(verdict.factor) and verdict.factor >= 0):
        return f"factor {verdict.factor}"
    if not (math.isfinite(scale.value) and scale.value > 0 and scale.streak <= MAX_STREAK):
        return f"loss scale {scale.value} for {scale.streak} steps"
    return ""


def _fault_of_pace(message: Ping | Pong) -> str:
    numbers = [message.slowest, message.link_rate]
    if isinstance(message, Pong):
        numbers += [message.handling, *message.round_trips]
    if len(numbers) > MAX_NORMS or not all(math.isfinite(number) and number >= 0 for number in numbers):
        return "times or rates that are none"
    return _fault_of_stamp(message)


_KINDS: Mapping[type, str] = {
    kind: kind.__name__.lower()
    for kind in (
        Open,
        Opened,
        Microbatch,
        Gradient,
        Outcome,
        Commit,
        Committed,
        Settle,
        Settled,
        Busy,
        Fault,
        Ping,
        Pong,
    )
}

_CLASSES: Mapping[str, Any] = {name: kind for kind, name in _KINDS.items()}

_CHECKS: Mapping[type, Callable[[Any], str]] = {
    Open: _fault_of_open,
    Opened: _fault_of_committed,
    Microbatch: _fault_of_microbatch,
    Gradient: _fault_of_gradient,
    Outcome: _fault_of_outcome,
    Commit: _fault_of_commit,
    Committed: _fault_of_committed,
    Ping: _fault_of_pace,
    Pong: _fault_of_pace,
}
