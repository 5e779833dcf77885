"""How the end of a stream is said in band, over gRPC.

gRPC's own end of a stream does not do: a handler sees the same whether its caller has finished or vanished; a caller
that writes while the call ends loses the status, and the messages that it has not read (grpc issue 36066). So either
side's last message is an end frame: one zero byte, followed by an error's class, a zero byte and its message if a
handler failed. No protobuf message looks like this: field numbers start at 1.
"""

from __future__ import annotations

from distqat.errors import DistqatError
from distqat.rpc.handlers import Outcome, rebuild
from distqat.rpc.status import details_of

FINISH = b"\x00"
"""The end frame of a caller that sends no more, and of a handler that returned."""


def is_end(message: bytes) -> bool:
    """Whether a message is an end frame, or would be taken for one."""
    return message == FINISH or (message[:1] == FINISH and message[1:2].isalpha())


def write(error: DistqatError | None) -> bytes:
    """The end frame of a handler."""
    if error is None:
        return FINISH
    return b"\x00".join((b"", type(error).__name__.encode(), details_of(error).encode()))


def read(frame: bytes) -> Outcome[None]:
    """What a handler's end frame says; whatever a peer may send is an error of some kind."""
    if frame == FINISH:
        return Outcome()
    kind, _, message = frame[1:].decode(errors="replace").partition("\x00")
    return Outcome(error=rebuild(kind, message))
