from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import messages, slices
from distqat.averaging.group import Group, Invite, Invited, Join, JoinReply, Stale, Verdict, Vote
from distqat.averaging.messages import SliceHeader
from distqat.errors import MessageError
from distqat.ids import Endpoint, PeerId, PipelineId, StepRef
from distqat.pb import averaging_pb2
from distqat.wire.frames import Chunk
from tests.averaging.words import failed, join, prepared, round_ref

HERE = Endpoint("alice", 7)
EXAMPLES: list[Any] = [
    Invite(round_ref(3), PeerId("alice"), HERE),
    Invited(joining=False, reason="busy", leading=True),
    Invited(joining=True, held_up=True),
    join("alice", number=3, samples=0),
    JoinReply(group=slices.assign("x", [join("alice"), join("bob")], 10)),
    JoinReply(stale=Stale(PeerId("bob"), HERE, 4, "d")),
    prepared("alice"),
    failed("alice", "it broke", "bob"),
    Verdict(False, "it broke", ("bob", "carol")),
    SliceHeader("x", PeerId("alice"), "none", Chunk(1 << 20, 1 << 33)),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_what_is_said_is_heard(message: Any) -> None:
    assert messages.decode(type(message), messages.encode(message)) == message


@given(st.binary(max_size=40))
def test_garbage_is_a_message_error_or_a_message(data: bytes) -> None:
    for message in EXAMPLES:
        with contextlib.suppress(MessageError):
            messages.decode(type(message), data)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Invite, Invite(round_ref(), PeerId(""), HERE)),
        (Invite, Invite(round_ref(), PeerId("alice"), Endpoint("", 0))),
        (Join, Join(round_ref(), PeerId(""), HERE, 1, "d", 10)),
        (Join, Join(round_ref(), PeerId("alice"), HERE, 1, "", 10)),
        (Join, Join(round_ref(), PeerId("alice"), HERE, 1, "d", 10, origins=(StepRef(PipelineId("p 1"), 1),))),
        (Join, Join(round_ref(), PeerId("alice"), HERE, 1, "d", 10, origins=(StepRef(PipelineId("p"), 1),) * 257)),
        (JoinReply, JoinReply()),
        (JoinReply, JoinReply(Group("x", ()), Stale(PeerId("bob"), HERE, 4, "d"))),
        (Vote, Vote("", PeerId("alice"), True, "d")),
    ],
)
def test_a_message_that_lacks_something_is_refused(kind: type[Any], message: Any) -> None:
    data = messages.encode(message)
    if message == JoinReply(Group("x", ()), Stale(PeerId("bob"), HERE, 4, "d")):
        # Protobuf keeps only the last of a oneof, so two answers are one again.
        assert messages.decode(kind, data).group is None
        return
    with pytest.raises(MessageError, match=kind.__name__):
        messages.decode(kind, data)


@given(st.binary(max_size=2000), st.integers(0, 2**40))
def test_frames_are_plain_protobuf(payload: bytes, offset: int) -> None:
    header = SliceHeader("x", PeerId("alice"), "none", Chunk(offset, 2**40))
    frame = messages.frame(header, payload)
    slice_frame = averaging_pb2.SliceFrame.FromString(frame)
    assert slice_frame.payload == payload
    assert slice_frame.header.chunk.offset == offset
    assert slice_frame.SerializeToString() == frame
    back, data = messages.unframe(SliceHeader, frame)
    assert (back, bytes(data)) == (header, payload)
