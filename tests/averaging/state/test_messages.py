from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import messages
from distqat.averaging.state.messages import Describe, Fetch, KeptRound, Replay, ReplayHeader
from distqat.averaging.state.snapshot import ChunkRef, Manifest, PartManifest
from distqat.errors import MessageError
from distqat.ids import PeerId, RunId, StageIndex
from distqat.pb import state_pb2
from distqat.wire.frames import Chunk
from distqat.wire.tensors import TensorHeader

RUN = RunId("näme", "ff")
PART = PartManifest((TensorHeader("anchor", "float32", (10,), "none", 40),), b"\x00\xff" * 8)
KEPT = KeptRound(3, "a", "b", (PeerId("alice"), PeerId("bob")), "int8")
EXAMPLES: list[Any] = [
    Describe(RUN, StageIndex(5), 7),
    Manifest(4, "d", (PeerId("alice"),), 1 << 20, (PART, PART)),
    Fetch(RUN, StageIndex(5), "d", ChunkRef(1, 70_000)),
    ChunkRef(0, 0),
    Replay(RUN, StageIndex(0), 1 << 40, "d"),
    ReplayHeader(KEPT, Chunk(0, 40)),
    ReplayHeader(None, Chunk(40, 80)),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_what_is_said_is_heard(message: Any) -> None:
    assert messages.decode(type(message), messages.encode(message)) == message


@given(st.binary(max_size=40))
def test_garbage_is_a_message_error_or_a_message(data: bytes) -> None:
    for message in EXAMPLES:
        with contextlib.suppress(MessageError):
            messages.decode(type(message), data)


@given(st.binary(max_size=2000), st.integers(0, 2**31))
def test_frames_are_plain_protobuf(payload: bytes, index: int) -> None:
    frame = messages.frame(ChunkRef(1, index), payload)
    state = state_pb2.StateFrame.FromString(frame)
    assert (state.header.part, state.header.index, state.payload) == (1, index, payload)
    header, data = messages.unframe(ChunkRef, frame)
    assert (header, bytes(data)) == (ChunkRef(1, index), payload)
    replay = messages.frame(ReplayHeader(KEPT, Chunk(0, 2**40)), payload)
    assert state_pb2.ReplayFrame.FromString(replay).header.kept.codec == "int8"
    assert messages.unframe(ReplayHeader, replay)[0].kept == KEPT


def test_a_stream_that_ends_too_soon_is_garbage() -> None:
    with pytest.raises(MessageError, match="ended before"):
        messages.unframe(ChunkRef, None)
