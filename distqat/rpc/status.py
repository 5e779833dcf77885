"""Our errors as gRPC status, and back: the one edge at which foreign errors become ours.

The status code is for foreign tools. A distqat peer reads the error's class from the trailing metadata and its message
from the details.
"""

from __future__ import annotations

from grpc import StatusCode
from grpc.aio import AioRpcError

from distqat.errors import (
    DeadlineError,
    DistqatError,
    GoneError,
    MessageError,
    NotDistqatError,
    OverloadedError,
    RemoteError,
    StaleError,
    TensorError,
    UnreachableError,
)
from distqat.ids import Endpoint
from distqat.rpc.handlers import rebuild
from distqat.rpc.transport import Method

ERROR_KEY = "distqat-error"
"""Trailing metadata: the class of the error."""

SPOILED = "Internal error from Core"
"""What grpc.aio makes of a call's status, whatever it was, when the call ends during a write (grpc issue 36066)."""

REFUSED = "Connection refused"
"""In gRPC's details when the host answers, and no process listens there."""

MAX_DETAILS = 2048
"""Bytes of a message that cross; gRPC limits the size of all metadata."""

CODES: dict[type[DistqatError], StatusCode] = {
    UnreachableError: StatusCode.UNAVAILABLE,
    DeadlineError: StatusCode.DEADLINE_EXCEEDED,
    OverloadedError: StatusCode.RESOURCE_EXHAUSTED,
    MessageError: StatusCode.INVALID_ARGUMENT,
    TensorError: StatusCode.INVALID_ARGUMENT,
    StaleError: StatusCode.ABORTED,
    RemoteError: StatusCode.INTERNAL,
    DistqatError: StatusCode.FAILED_PRECONDITION,
}
"""What a foreign tool sees; the nearest class counts."""


def code_of(error: DistqatError) -> StatusCode:
    """The status code of an error."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def details_of(error: DistqatError) -> str:
    """Its message, cut to what may cross."""
    return error.reason.encode()[:MAX_DETAILS].decode(errors="ignore")


def error_of(status: AioRpcError, method: Method, to: Endpoint) -> DistqatError:
    """What a failed call means here."""
    details = status.details() or ""
    for key, value in status.trailing_metadata() or ():
        if key == ERROR_KEY:
            return rebuild(value if isinstance(value, str) else value.decode(), details)
    where = f"{method} at {to}"
    match status.code():
        case StatusCode.UNAVAILABLE if "HTTP/2" in details or "http1" in details:
            return NotDistqatError(f"{to} answers, but it is not distqat: {_last(details)}")
        case StatusCode.UNAVAILABLE if REFUSED in details:
            return GoneError(f"{where}: {_last(details)}")
        case StatusCode.UNAVAILABLE | StatusCode.CANCELLED:
            return UnreachableError(f"{where}: {_last(details)}")
        case StatusCode.INTERNAL if details == SPOILED:
            return UnreachableError(f"{where}: the other side has ended the stream")
        case StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(f"{where}: no answer in time")
        case StatusCode.UNIMPLEMENTED | StatusCode.UNKNOWN:
            return NotDistqatError(f"{to} answers, but it is not distqat: {_last(details)}")
        case StatusCode.RESOURCE_EXHAUSTED:
            return MessageError(f"{where}: {details}")
        case code:
            return RemoteError(f"{where}: {code.name.lower()}: {details}")


def _last(details: str) -> str:
    """The part of gRPC's details that says what happened, without the attempts before it."""
    return details.rpartition("last error: ")[2] or "the connection broke"
