"""What neighbours say to each other survives the wire; garbage does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import MessageError
from distqat.ids import Endpoint, PeerId, PipelineId, RunId, Seat, StageIndex
from distqat.model.agreement import LossScale, Verdict
from distqat.pb import pipeline_pb2 as pb
from distqat.pipeline.hop_codecs import HopCodecs
from distqat.pipeline.messages import (
    MAX_NORMS,
    MAX_REASON,
    MAX_TENSORS,
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
    from_header,
    to_frames,
)
from distqat.wire import frames, tensors
from distqat.wire.tensors import TensorHeader

SEATS = (
    Seat(PeerId("b"), Endpoint("10.0.0.1", 4000), StageIndex(1)),
    Seat(PeerId("c"), Endpoint("::1", 4001), StageIndex(2)),
)

SKIPPED = Verdict(0.0, LossScale(2.0**15, 3))

PLAIN: list[Message] = [
    Open(RunId("digits", "abc"), PipelineId("p0"), 3, 17, SEATS),
    Open(RunId("digits", "abc"), PipelineId("p0"), 3, 17, SEATS, PeerId("a"), HopCodecs("int8", "bf16"), SKIPPED),
    Opened(17),
    Opened(17, SKIPPED),
    Outcome(4, 2, {"loss": 1.5, "correct": 3.0}),
    Commit(4, 32),
    Commit(4, 32, SKIPPED),
    Committed(4),
    Committed(4, SKIPPED, 0.25),
    Settle(2),
    Settled(2),
    Busy(StageIndex(1)),
    Fault(PeerId("b"), "TensorError", "the loss is nan"),
    Gradient(4, 2),
    Gradient(4, 2, sums={"loss": 1.5, "correct": 3.0}),
    Gradient(4, 3, square_norms=(0.25, math.inf, 0.0)),
    Microbatch(4, 2, 4, 32, True, 8, progress=0.75, claim=1 << 41, warmup=0.125),
    Ping(3),
    Ping(3, 0.25, 2e6),
    Pong(3),
    Pong(3, 0.25, 0.125, (0.5, 2.0), 2e6),
]


@pytest.mark.parametrize("message", PLAIN, ids=lambda message: type(message).__name__)
def test_a_message_without_payload_is_one_frame(message: Message) -> None:
    (frame,) = to_frames(message)
    header, payload = frames.split(frame)
    assert not len(payload)
    assert from_header(header) == (message, None)
    assert pb.HopFrame.FromString(frame).header.WhichOneof("kind") == type(message).__name__.lower()


@pytest.mark.parametrize("message", [Microbatch(1, 0, 1, 1, True, 1), Gradient(1, 0), Ping(1), Pong(1)])
def test_the_time_at_which_a_message_left_travels_and_makes_no_difference_to_it(
    message: Microbatch | Gradient | Ping | Pong,
) -> None:
    stamped = replace(message, sent=7.5)
    assert stamped == message
    (frame,) = to_frames(stamped)
    received, _ = from_header(frames.split(frame)[0])
    assert getattr(received, "sent", None) == 7.5


@given(size=st.integers(1, 3 * (1 << 18)), step=st.integers(1, 1 << 40), train=st.booleans())
def test_a_microbatch_repeats_its_header_with_each_chunk(size: int, step: int, train: bool) -> None:
    headers, payload = tensors.encode({"hidden": torch.zeros(size), "labels": torch.ones(2, dtype=torch.int64)})
    message = Microbatch(step, 1, 4, 32, train, 8, tuple(headers))
    offset = 0
    for frame in to_frames(message, payload):
        header, part = frames.split(frame)
        assert from_header(header) == (message, frames.Chunk(offset, len(payload)))
        offset += len(part)
    assert offset == len(payload)


@given(st.binary(max_size=200))
def test_garbage_is_a_message_error_or_a_message(data: bytes) -> None:
    try:
        message, _ = from_header(memoryview(data))
    except MessageError:
        return
    next(iter(to_frames(message)))


def microbatch(**fields: float) -> pb.HopHeader:
    values = {"step": 1, "index": 0, "count": 2, "batch_samples": 8, "samples": 4} | fields
    return pb.HopHeader(microbatch=pb.Microbatch(**values))  # type: ignore[arg-type]


def judged(factor: float, scale: float, streak: int = 0) -> pb.HopHeader:
    verdict = pb.Verdict(factor=factor, scale=pb.LossScale(value=scale, streak=streak))
    return pb.HopHeader(commit=pb.Commit(step=1, samples=1, verdict=verdict))


def many_tensors() -> pb.HopHeader:
    header = microbatch()
    for index in range(MAX_TENSORS + 1):
        header.microbatch.tensors.add(name=str(index))
    return header


def twins() -> pb.HopHeader:
    header = microbatch()
    for _ in range(2):
        header.microbatch.tensors.add(name="labels")
    return header


def lying() -> pb.HopHeader:
    header = microbatch()
    header.microbatch.tensors.add(name="hidden", bytes=1 << 50)
    header.chunk.total = 10
    return header


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (pb.HopHeader(), "not known"),
        (microbatch(step=0), "counted from 1"),
        (microbatch(index=2), "index 2 of 2"),
        (microbatch(count=0), "index 0 of 0"),
        (microbatch(samples=9), "9 samples of 8"),
        (microbatch(samples=0), "0 samples"),
        (many_tensors(), "33 tensors"),
        (twins(), "one name"),
        (lying(), "another payload"),
        (microbatch(progress=math.nan), "progress nan"),
        (microbatch(warmup=math.inf), "warmup inf"),
        (microbatch(warmup=-0.5), "warmup -0.5"),
        (pb.HopHeader(commit=pb.Commit(step=0, samples=1)), "commit"),
        (pb.HopHeader(commit=pb.Commit(step=1, samples=1)), "loss scale 0"),
        (judged(-1.0, 1.0), "factor -1"),
        (judged(math.inf, 1.0), "factor inf"),
        (judged(1.0, math.nan), "loss scale nan"),
        (judged(1.0, -2.0), "loss scale -2"),
        (judged(1.0, 1.0, 1 << 31), "for 2147483648 steps"),
        (pb.HopHeader(opened=pb.Opened(step=1, verdict=pb.Verdict(factor=-1.0))), "factor -1"),
        (pb.HopHeader(committed=pb.Committed(step=1, verdict=pb.Verdict(factor=1.0))), "loss scale 0"),
        (pb.HopHeader(committed=pb.Committed(step=1, seconds=-1.0)), "-1.0 seconds"),
        (pb.HopHeader(gradient=pb.Gradient(step=1, square_norms=[-1.0])), "negative"),
        (pb.HopHeader(gradient=pb.Gradient(step=1, square_norms=[0.0] * (MAX_NORMS + 1))), "4097 norms"),
        (pb.HopHeader(ping=pb.Ping(serial=1, slowest=-1.0)), "times or rates that are none"),
        (pb.HopHeader(pong=pb.Pong(serial=1, round_trips=[1.0, math.inf])), "times or rates that are none"),
        (pb.HopHeader(pong=pb.Pong(serial=1, handling=math.nan)), "times or rates that are none"),
        (pb.HopHeader(ping=pb.Ping(serial=1, link_rate=-1.0)), "times or rates that are none"),
        (pb.HopHeader(pong=pb.Pong(serial=1, sent=math.inf)), "sent at inf"),
        (pb.HopHeader(gradient=pb.Gradient(step=1, sent=math.nan)), "sent at nan"),
        (pb.HopHeader(open=pb.Open(pipeline="p", epoch=1)), "at least one seat"),
        (pb.HopHeader(open=pb.Open(pipeline="", epoch=1, seats=[pb.Seat(peer="a")])), "no pipeline"),
        (pb.HopHeader(open=pb.Open(pipeline="p", epoch=1, seats=[pb.Seat(peer="a")] * 2)), "not of every stage"),
    ],
)
def test_what_makes_no_sense_is_refused(header: pb.HopHeader, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        from_header(memoryview(header.SerializeToString()))


def test_a_reason_is_cut_before_it_travels() -> None:
    (frame,) = to_frames(Fault(PeerId("b"), "RemoteError", "x" * (1 << 20)))
    message, _ = from_header(frames.split(frame)[0])
    assert isinstance(message, Fault)
    assert len(message.reason) == MAX_REASON


def test_a_gradient_is_one_tensor() -> None:
    header = TensorHeader("gradient", "float32", (1,), "none", 0)
    (frame,) = to_frames(Gradient(1, 0, (header, TensorHeader("more", "float32", (1,), "none", 0))))
    with pytest.raises(MessageError, match="2 tensors"):
        from_header(frames.split(frame)[0])
