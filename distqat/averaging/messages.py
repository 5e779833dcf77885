"""What siblings say to each other, as bytes and back, and the methods of flow B.

Chunks of slices, and of committed state, travel in frames: a small header, then bytes that protobuf never touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from distqat.averaging.group import Invite, Invited, Join, JoinReply, Leave, Verdict, Vote
from distqat.averaging.slices import origins_fault
from distqat.averaging.state import messages as state
from distqat.averaging.state.messages import ReplayHeader
from distqat.averaging.state.snapshot import ChunkRef
from distqat.errors import MessageError
from distqat.ids import PeerId
from distqat.pb import averaging_pb2 as pb
from distqat.rpc import mirror
from distqat.rpc.transport import Lane, Method
from distqat.wire import frames
from distqat.wire.frames import Chunk

AVERAGING = "distqat.v1.Averaging"

INVITE = Method(AVERAGING, "Invite")
JOIN = Method(AVERAGING, "Join")
EXCHANGE = Method(AVERAGING, "Exchange", Lane.BULK)
VOTE = Method(AVERAGING, "Vote")
LEAVE = Method(AVERAGING, "Leave")
PROBE = Method(AVERAGING, "Probe")
"""Answered at once, with nothing: whoever waits at a leader sees that it still answers."""

T = TypeVar("T")


@dataclass(frozen=True)
class SliceHeader:
    """Which chunk of which slice, of which attempt, from whom."""

    attempt: str
    peer: PeerId
    codec: str
    chunk: Chunk


_KINDS: dict[type, type[Message]] = {
    Invite: pb.InviteRequest,
    Invited: pb.InviteReply,
    Join: pb.JoinRequest,
    JoinReply: pb.JoinReply,
    Vote: pb.VoteRequest,
    Leave: pb.LeaveRequest,
    Verdict: pb.VoteReply,
    SliceHeader: pb.SliceHeader,
    **state.KINDS,
}


def encode(message: object) -> bytes:
    """Any of the messages above, of `group` or of `state`, as bytes."""
    return mirror.encode(message, _KINDS[type(message)])


def decode(kind: type[T], data: bytes | memoryview) -> T:
    """A message of that kind. Raises MessageError, also when it lacks what every such message has."""
    message = mirror.decode(kind, data, _KINDS[kind])
    fault = _fault(message)
    if fault:
        raise MessageError(f"{kind.__name__}: {fault}")
    return message


def frame(header: SliceHeader | ChunkRef | ReplayHeader, *payload: memoryview | bytes) -> bytes:
    """A header and the views of its chunk, as one message."""
    return frames.join(encode(header), *payload)


def unframe(kind: type[T], data: bytes | None) -> tuple[T, memoryview]:
    """Header and chunk. Raises MessageError, also when there is no further message."""
    if data is None:
        raise MessageError("the stream ended before everything was there")
    header, payload = frames.split(data)
    return decode(kind, header), payload


def _fault(message: object) -> str:
    """What is missing, or nothing."""
    if isinstance(message, Invite) and not (message.leader and message.endpoint.host):
        return "it must name its leader and where that answers"
    if isinstance(message, Join) and not (message.peer and message.endpoint.host and message.digest):
        return "it must name its sibling, where that answers and the digest of its anchor"
    if isinstance(message, Join) and (fault := origins_fault(message.origins)):
        return fault
    if isinstance(message, JoinReply) and (message.group is None) is (message.stale is None):
        return "it must hold a group or a donor"
    if isinstance(message, Leave) and not message.peer:
        return "it must name its sibling"
    if isinstance(message, Vote) and not (message.attempt and message.peer):
        return "it must name its attempt and its member"
    return ""
