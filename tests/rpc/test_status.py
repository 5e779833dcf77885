"""The table between our errors and gRPC status."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from distqat.errors import (
    DeadlineError,
    DistqatError,
    GoneError,
    MessageError,
    NotDistqatError,
    OverloadedError,
    ProtocolError,
    RemoteError,
    RouteError,
    StaleError,
    UnreachableError,
)
from distqat.ids import Endpoint
from distqat.rpc.status import ERROR_KEY, MAX_DETAILS, code_of, details_of, error_of
from distqat.rpc.transport import Method

METHOD = Method("distqat.v1.Pipeline", "Hop")
TO = Endpoint("10.0.0.1", 4000)


def status(code: StatusCode, details: str | None = None, *trailing: tuple[str, str]) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*trailing), details)


@pytest.mark.parametrize(
    ("code", "details", "kind", "words"),
    [
        (StatusCode.UNAVAILABLE, "failed; last error: Connection refused", GoneError, ": Connection refused"),
        (StatusCode.UNAVAILABLE, "Failed parsing HTTP/2", NotDistqatError, "10.0.0.1:4000 answers"),
        (StatusCode.UNAVAILABLE, None, UnreachableError, "the connection broke"),
        (StatusCode.CANCELLED, "", UnreachableError, "Pipeline.Hop at 10.0.0.1:4000"),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineError, "no answer in time"),
        (StatusCode.UNIMPLEMENTED, "Method not found!", NotDistqatError, "Method not found!"),
        (StatusCode.RESOURCE_EXHAUSTED, "message larger than max (9 vs. 8)", MessageError, "(9 vs. 8)"),
        (StatusCode.DATA_LOSS, "oh", RemoteError, "data_loss: oh"),
    ],
)
def test_a_foreign_status_becomes_an_error_of_ours(
    code: StatusCode, details: str | None, kind: type[DistqatError], words: str
) -> None:
    error = error_of(status(code, details), METHOD, TO)
    assert type(error) is kind
    assert words in error.reason
    assert str(TO) in error.reason


def test_the_class_in_the_metadata_counts_more_than_the_code() -> None:
    error = error_of(status(StatusCode.UNAVAILABLE, "old", (ERROR_KEY, "StaleError")), METHOD, TO)
    assert repr(error) == repr(StaleError("old"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverloadedError("full"), StatusCode.RESOURCE_EXHAUSTED),
        (ProtocolError("99"), StatusCode.FAILED_PRECONDITION),
        (RouteError("hop"), StatusCode.FAILED_PRECONDITION),
        (StaleError("old"), StatusCode.ABORTED),
    ],
)
def test_every_error_has_a_code(error: DistqatError, code: StatusCode) -> None:
    assert code_of(error) is code


def test_a_message_is_cut_between_characters() -> None:
    cut = details_of(StaleError("ä" * MAX_DETAILS))
    assert cut == "ä" * (MAX_DETAILS // 2)
