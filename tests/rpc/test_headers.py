"""What every call says before its message."""

from __future__ import annotations

import pytest

from distqat.errors import MessageError, ProtocolError
from distqat.rpc import headers
from distqat.rpc.headers import Headers
from distqat.rpc.transport import PROTOCOL_VERSION, Lane


def test_headers_pass() -> None:
    received = headers.read(headers.write(1.5))
    received.check_version("here:1")
    assert received.seconds_left(9.0) == 1.5
    assert received.seconds_left(1.0) == 1.0
    assert received.seconds_left(None) == 1.5
    assert headers.read(headers.write(None)).seconds_left(None) is None
    assert headers.read(headers.write(None)).seconds_left(2.0) == 2.0


def test_binary_and_foreign_metadata_are_passed_over() -> None:
    assert headers.read([("user-agent", "x"), (headers.VERSION_KEY, b"1")]) == Headers()


def test_the_lane_of_a_call_is_known_where_it_is_answered() -> None:
    for lane in Lane:
        assert headers.read(headers.write(1.0, lane)).lane is lane
    assert headers.read([(headers.LANE_KEY, "express")]).lane is Lane.CONTROL


@pytest.mark.parametrize(("version", "spoken"), [("99", "version 99"), ("", "no version")])
def test_another_version_is_refused(version: str, spoken: str) -> None:
    with pytest.raises(ProtocolError, match=rf"{spoken} .*here:1 speaks version {PROTOCOL_VERSION}"):
        Headers(version).check_version("here:1")


@pytest.mark.parametrize("left", ["x", "nan", "-inf", "1e999"])
def test_garbage_seconds_are_refused(left: str) -> None:
    with pytest.raises(MessageError, match=left):
        Headers(str(PROTOCOL_VERSION), left).seconds_left(None)
