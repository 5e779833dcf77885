from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import ConfigError
from distqat.ids import Endpoint, PeerId, RunId, Seat, StageIndex, short


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("10.0.0.1:4000", Endpoint("10.0.0.1", 4000)),
        ("node-1.lab:0", Endpoint("node-1.lab", 0)),
        ("[::1]:65535", Endpoint("::1", 65535)),
        ("fe80::1:80", Endpoint("fe80::1", 80)),
    ],
)
def test_addresses(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint


@given(st.from_regex(r"[a-z0-9.-]{1,20}|[0-9a-f:]{2,20}", fullmatch=True), st.integers(0, 65535))
def test_addresses_round_trip(host: str, port: int) -> None:
    assert Endpoint.parse(str(Endpoint(host, port))) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":80",
        "[]:80",
        "host:",
        "host:-1",
        "host:65536",
        "host:x",
        "host:" + "9" * 5000,
        "a b:80",
        "http://h:80",
    ],
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address; write HOST:PORT"):
        Endpoint.parse(text)


def test_for_people() -> None:
    peer = PeerId("0123456789" * 4)
    assert short(peer) == "01234567"
    assert str(RunId("digits", "0123456789abcdef")) == "digits@01234567"
    assert str(Seat(peer, Endpoint("::1", 80), StageIndex(2))) == "stage 2 on 01234567 ([::1]:80)"
