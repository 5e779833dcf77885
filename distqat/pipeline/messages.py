"""What neighbours on a route say to each other: frozen dataclasses here, protobuf on the wire.

Nothing that comes in is believed before it is checked; whatever is wrong with it is a MessageError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from distqat.errors import MessageError
from distqat.ids import Endpoint, MicrobatchId, PeerId, PipelineId, RunId, Seat, StageIndex
from distqat.pb import pipeline_pb2 as pb
from distqat.pipeline.route import fault_of_seats
from distqat.rpc.transport import Lane, Method
from distqat.wire import frames
from distqat.wire.frames import Chunk
from distqat.wire.tensors import TensorHeader

SERVICE = "distqat.v1.Pipeline"
HOP = Method(SERVICE, "Hop", Lane.BULK)

MAX_MICROBATCHES = 1 << 16
"""Of one step."""

MAX_TENSORS = 32
"""Of one message: inputs and targets."""

MAX_SUMS = 64
"""Sums that a task may report."""

MAX_REASON = 2000
"""Characters of a fault's reason; longer ones are cut."""


@dataclass(frozen=True)
class Open:
    """Down: opens a hop, and with it the rest of the route. `seats` begin with the receiver."""

    run: RunId
    pipeline: PipelineId
    epoch: int
    step: int
    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class Opened:
    """Up: the route is open to its end, and `step` is committed."""

    step: int


@dataclass(frozen=True)
class Microbatch:
    """Down: inputs of a stage for one microbatch, and the targets for the last stage."""

    step: int
    index: int
    count: int
    batch_samples: int
    train: bool
    samples: int
    tensors: tuple[TensorHeader, ...] = ()

    @property
    def id(self) -> MicrobatchId:
        """Its name on the route."""
        return MicrobatchId(self.step, self.index)


@dataclass(frozen=True)
class Gradient:
    """Up: gradient of one microbatch's inputs; from stage 0 to the trainer without a tensor."""

    step: int
    index: int
    tensors: tuple[TensorHeader, ...] = ()

    @property
    def id(self) -> MicrobatchId:
        """Its name on the route."""
        return MicrobatchId(self.step, self.index)


@dataclass(frozen=True)
class Outcome:
    """Up: loss and metrics of one microbatch."""

    step: int
    index: int
    train: bool
    sums: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> MicrobatchId:
        """Its name on the route."""
        return MicrobatchId(self.step, self.index)


@dataclass(frozen=True)
class Commit:
    """Down: the step is complete, apply it."""

    step: int
    samples: int


@dataclass(frozen=True)
class Committed:
    """Up, from stage 0: the step is committed."""

    step: int


@dataclass(frozen=True)
class Settle:
    """Down: agree on an anchor with the siblings now."""

    serial: int


@dataclass(frozen=True)
class Settled:
    """Up: all stages from here down have settled."""

    serial: int


@dataclass(frozen=True)
class Busy:
    """Up: no answer yet, but `stage` is at work on an outer round."""

    stage: StageIndex


@dataclass(frozen=True)
class Fault:
    """Up: the route is broken at `peer`; `kind` is the name of the error's class."""

    peer: PeerId
    kind: str
    reason: str


Message = Open | Opened | Microbatch | Gradient | Outcome | Commit | Committed | Settle | Settled | Busy | Fault


def payload_bytes(message: Message) -> int:
    """Bytes of payload that belong to the message."""
    if isinstance(message, Microbatch | Gradient):
        return sum(header.bytes for header in message.tensors)
    return 0


def to_frames(message: Message, payload: memoryview = memoryview(b"")) -> Iterator[bytes]:  # noqa: B008
    """The frames of one message."""
    header = _WRITERS[type(message)](message)
    if not len(payload):
        yield frames.join(header.SerializeToString())
        return
    for chunk, part in frames.chunks(payload):
        header.chunk.offset, header.chunk.total = chunk.offset, chunk.total
        yield frames.join(header.SerializeToString(), part)


def from_header(data: memoryview) -> tuple[Message, Chunk | None]:
    """The message of a frame's header, and where the frame's payload belongs. Raises MessageError."""
    try:
        header = pb.HopHeader.FromString(bytes(data))
    except DecodeError:
        raise MessageError("not a message of a hop: its header cannot be read") from None
    kind = header.WhichOneof("kind")
    if kind is None:
        raise MessageError("a message of a kind that is not known; the peer may run another version")
    message = _READERS[kind](getattr(header, kind))
    chunk = Chunk(header.chunk.offset, header.chunk.total) if header.HasField("chunk") else None
    if payload_bytes(message) != (chunk.total if chunk is not None else 0):
        raise MessageError(f"a {kind} whose tensors take {payload_bytes(message)} bytes, with another payload")
    return message, chunk


def _write_open(message: Open) -> pb.HopHeader:
    header = pb.HopHeader()
    header.open.run.name, header.open.run.digest = message.run.name, message.run.digest
    header.open.pipeline, header.open.epoch, header.open.step = message.pipeline, message.epoch, message.step
    for seat in message.seats:
        line = header.open.seats.add(peer=seat.peer, stage=seat.stage)
        line.endpoint.host, line.endpoint.port = seat.endpoint.host, seat.endpoint.port
    return header


def _read_open(open: pb.Open) -> Open:
    seats = tuple(
        Seat(PeerId(seat.peer), Endpoint(seat.endpoint.host, seat.endpoint.port), StageIndex(seat.stage))
        for seat in open.seats
    )
    fault = fault_of_seats(seats, seats[0].stage if seats else StageIndex(0))
    _require(fault is None, f"open: {fault}")
    _require(bool(open.pipeline) and open.epoch >= 1, "open: no pipeline or no epoch")
    return Open(RunId(open.run.name, open.run.digest), PipelineId(open.pipeline), open.epoch, open.step, seats)


def _write_microbatch(message: Microbatch) -> pb.HopHeader:
    header = pb.HopHeader()
    microbatch = header.microbatch
    microbatch.step, microbatch.index, microbatch.count = message.step, message.index, message.count
    microbatch.batch_samples, microbatch.samples = message.batch_samples, message.samples
    microbatch.train = message.train
    _write_tensors(microbatch.tensors, message.tensors)
    return header


def _read_microbatch(microbatch: pb.Microbatch) -> Microbatch:
    _require(microbatch.step >= 1, "microbatch: steps are counted from 1")
    _require(
        microbatch.index < microbatch.count <= MAX_MICROBATCHES,
        f"microbatch: index {microbatch.index} of {microbatch.count}",
    )
    _require(
        1 <= microbatch.samples <= microbatch.batch_samples,
        f"microbatch: {microbatch.samples} samples of {microbatch.batch_samples}",
    )
    return Microbatch(
        microbatch.step,
        microbatch.index,
        microbatch.count,
        microbatch.batch_samples,
        microbatch.train,
        microbatch.samples,
        _read_tensors(microbatch.tensors),
    )


def _write_gradient(message: Gradient) -> pb.HopHeader:
    header = pb.HopHeader()
    header.gradient.step, header.gradient.index = message.step, message.index
    _write_tensors(header.gradient.tensors, message.tensors)
    return header


def _read_gradient(gradient: pb.Gradient) -> Gradient:
    _require(len(gradient.tensors) <= 1, f"gradient: {len(gradient.tensors)} tensors")
    return Gradient(gradient.step, gradient.index, _read_tensors(gradient.tensors))


def _read_outcome(outcome: pb.Outcome) -> Outcome:
    _require(len(outcome.sums) <= MAX_SUMS, f"outcome: {len(outcome.sums)} sums")
    return Outcome(outcome.step, outcome.index, outcome.train, dict(outcome.sums))


def _read_commit(commit: pb.Commit) -> Commit:
    _require(commit.step >= 1 and commit.samples >= 1, "commit: no step or no samples")
    return Commit(commit.step, commit.samples)


def _write_outcome(message: Outcome) -> pb.HopHeader:
    outcome = pb.Outcome(step=message.step, index=message.index, train=message.train, sums=message.sums)
    return pb.HopHeader(outcome=outcome)


def _write_fault(message: Fault) -> pb.HopHeader:
    header = pb.HopHeader()
    header.fault.peer, header.fault.kind, header.fault.reason = message.peer, message.kind, message.reason[:MAX_REASON]
    return header


def _read_fault(fault: Any) -> Fault:
    return Fault(PeerId(fault.peer), fault.kind, fault.reason[:MAX_REASON])


def _write_tensors(lines: Any, headers: Iterable[TensorHeader]) -> None:
    for header in headers:
        lines.add(name=header.name, dtype=header.dtype, shape=header.shape, codec=header.codec, bytes=header.bytes)


def _read_tensors(lines: Any) -> tuple[TensorHeader, ...]:
    _require(len(lines) <= MAX_TENSORS, f"{len(lines)} tensors in one message")
    _require(len({line.name for line in lines}) == len(lines), "two tensors of one name")
    return tuple(TensorHeader(line.name, line.dtype, tuple(line.shape), line.codec, line.bytes) for line in lines)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise MessageError(text)


_WRITERS: Mapping[type, Callable[[Any], pb.HopHeader]] = {
    Open: _write_open,
    Opened: lambda message: pb.HopHeader(opened=pb.Opened(step=message.step)),
    Microbatch: _write_microbatch,
    Gradient: _write_gradient,
    Outcome: _write_outcome,
    Commit: lambda message: pb.HopHeader(commit=pb.Commit(step=message.step, samples=message.samples)),
    Committed: lambda message: pb.HopHeader(committed=pb.Committed(step=message.step)),
    Settle: lambda message: pb.HopHeader(settle=pb.Settle(serial=message.serial)),
    Settled: lambda message: pb.HopHeader(settled=pb.Settled(serial=message.serial)),
    Busy: lambda message: pb.HopHeader(busy=pb.Busy(stage=message.stage)),
    Fault: _write_fault,
}

_READERS: Mapping[str, Callable[[Any], Message]] = {
    "open": _read_open,
    "opened": lambda opened: Opened(opened.step),
    "microbatch": _read_microbatch,
    "gradient": _read_gradient,
    "outcome": _read_outcome,
    "commit": _read_commit,
    "committed": lambda committed: Committed(committed.step),
    "settle": lambda settle: Settle(settle.serial),
    "settled": lambda settled: Settled(settled.serial),
    "busy": lambda busy: Busy(StageIndex(busy.stage)),
    "fault": _read_fault,
}
