"""Flow C as bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.discovery import messages
from distqat.discovery.calls import (
    Contact,
    FindNodeReply,
    FindRequest,
    FindValueReply,
    Life,
    PingReply,
    PingRequest,
    StoreReply,
    StoreRequest,
)
from distqat.discovery.records import (
    Body,
    ClientRecord,
    ConfigRecord,
    ExpertRecord,
    Pace,
    PeerRecord,
    Record,
    TrainerRecord,
    substance,
)
from distqat.errors import DistqatError, MessageError
from distqat.ids import Endpoint, PipelineId, RunId, StageIndex
from distqat.rpc.transport import Lane
from tests.discovery.helpers import a_record

HERE = Endpoint("10.0.0.1", 7000)
SENDER = Contact(bytes(range(20)), HERE)
OTHER = Contact(bytes(20), Endpoint("::1", 65535))
RUN = RunId("digits", "abcdef")
RECORDS: list[Record] = [
    PeerRecord(HERE),
    PeerRecord(HERE, ("expert", "monitor"), RUN, "0.1"),
    ConfigRecord(RUN, HERE),
    ExpertRecord(HERE),
    ExpertRecord(HERE, True, StageIndex(3), True, 17, 4, "d1", True, "training"),
    TrainerRecord(HERE, (PipelineId("a"), PipelineId("b")), 9, "driving", (Pace(PipelineId("a"), 0.02, 5),)),
    ClientRecord(HERE, True, "planning"),
    PeerRecord(HERE, ("trainer",), RUN, "0.1", committed=True),
]
DECODERS: list[Callable[[bytes], object]] = [
    messages.decode_ping_request,
    messages.decode_ping_reply,
    messages.decode_store_request,
    messages.decode_store_reply,
    messages.decode_find_node_request,
    messages.decode_find_node_reply,
    messages.decode_find_value_request,
    messages.decode_find_value_reply,
    messages.decode_body,
    *(lambda data, kind=kind: messages.decode_record(kind, data) for kind in {type(record) for record in RECORDS}),
]


def test_calls_come_back_as_they_were() -> None:
    for ping in (PingRequest(SENDER), PingRequest(SENDER, b"n" * 16)):
        assert messages.decode_ping_request(messages.encode_ping_request(ping)) == ping
    for pong in (PingReply(OTHER), PingReply(OTHER, Life(1 << 40, b"s" * 64))):
        assert messages.decode_ping_reply(messages.encode_ping_reply(pong)) == pong
    store, stored = StoreRequest(SENDER, (a_record(), a_record(2))), StoreReply(1, ("too large",), OTHER.id)
    assert messages.decode_store_request(messages.encode_store_request(store)) == store
    assert messages.decode_store_reply(messages.encode_store_reply(stored)) == stored
    find = FindRequest(SENDER, OTHER.id)
    assert messages.decode_find_node_request(messages.encode_find_node_request(find)) == find
    assert messages.decode_find_value_request(messages.encode_find_value_request(find)) == find
    nodes = FindNodeReply((SENDER, OTHER), OTHER.id)
    assert messages.decode_find_node_reply(messages.encode_find_node_reply(nodes)) == nodes
    value = FindValueReply((a_record(),), (SENDER,), OTHER.id)
    assert messages.decode_find_value_reply(messages.encode_find_value_reply(value)) == value


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_come_back_as_they_were(record: Record) -> None:
    data = messages.encode_record(record)
    assert messages.decode_record(type(record), data) == record  # type: ignore[type-var]


def test_bodies_come_back_as_they_were() -> None:
    for body in (Body("peers", 1, 2.5, False, b"x"), Body("runs", (1 << 64) - 1, 0.0, True)):
        assert messages.decode_body(messages.encode_body(body)) == body


def test_substance_leaves_progress_out() -> None:
    assert substance(RECORDS[4]) == ExpertRecord(HERE, True, StageIndex(3), True, round=1, pinned=True)
    assert substance(RECORDS[5]) == TrainerRecord(HERE, (PipelineId("a"), PipelineId("b")))
    assert substance(RECORDS[6]) == ClientRecord(HERE, True)
    assert substance(RECORDS[0]) == RECORDS[0]


def test_discovery_uses_the_control_lane() -> None:
    methods = (messages.PING, messages.STORE, messages.FIND_NODE, messages.FIND_VALUE)
    assert {method.lane for method in methods} == {Lane.CONTROL}
    assert {method.flow for method in methods} == {"discovery"}


def test_a_long_reason_is_cut_before_it_is_sent() -> None:
    record = messages.decode_record(ClientRecord, messages.encode_record(ClientRecord(HERE, reason="x" * 9999)))
    assert len(record.reason) == messages.MAX_TEXT_CHARS


def test_a_peer_with_too_many_words_is_refused() -> None:
    with pytest.raises(MessageError, match="at most 256"):
        messages.decode_record(PeerRecord, messages.encode_record(PeerRecord(HERE, ("role",) * 257)))
    with pytest.raises(MessageError, match="digest of 600 characters"):
        messages.decode_record(ExpertRecord, messages.encode_record(ExpertRecord(HERE, digest="d" * 600)))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_pace_that_cannot_be_is_refused(seconds: float) -> None:
    record = TrainerRecord(HERE, paces=(Pace(PipelineId("a"), seconds, 4),))
    with pytest.raises(MessageError, match="a pace of"):
        messages.decode_record(TrainerRecord, messages.encode_record(record))


def test_of_too_many_paces_the_first_are_announced() -> None:
    record = TrainerRecord(HERE, paces=tuple(Pace(PipelineId(f"p{i}"), 1.0, 4) for i in range(200)))
    data = messages.encode_record(record)
    assert len(data) < messages.MAX_BODY_BYTES
    assert messages.decode_record(TrainerRecord, data).paces == record.paces[: messages.MAX_PACES]


@pytest.mark.parametrize(
    "endpoint", [Endpoint("", 1), Endpoint("host", 0), Endpoint("host", 70000), Endpoint("h" * 300, 1)]
)
def test_what_is_no_address_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(MessageError, match="is not an address"):
        messages.decode_ping_request(messages.encode_ping_request(PingRequest(Contact(SENDER.id, endpoint))))


def test_nonces_and_signatures_of_another_length_are_refused() -> None:
    with pytest.raises(MessageError, match="a nonce has 16 bytes, not 3"):
        messages.decode_ping_request(messages.encode_ping_request(PingRequest(SENDER, b"abc")))
    with pytest.raises(MessageError, match="a signature has 64 bytes, not 3"):
        messages.decode_ping_reply(messages.encode_ping_reply(PingReply(SENDER, Life(1, b"abc"))))


def test_ids_of_another_length_are_refused() -> None:
    with pytest.raises(MessageError, match="20 bytes, not 3"):
        messages.decode_find_node_request(messages.encode_find_node_request(FindRequest(SENDER, b"abc")))
    with pytest.raises(MessageError, match="20 bytes, not 0"):
        messages.decode_find_node_reply(messages.encode_find_node_reply(FindNodeReply((), b"")))


def test_counts_are_capped() -> None:
    many = tuple(a_record() for _ in range(messages.MAX_STORED + 1))
    with pytest.raises(MessageError, match="65 records"):
        messages.decode_store_request(messages.encode_store_request(StoreRequest(SENDER, many)))
    crowd = FindNodeReply((SENDER,) * (messages.MAX_NODES + 1), OTHER.id)
    with pytest.raises(MessageError, match="65 nodes"):
        messages.decode_find_node_reply(messages.encode_find_node_reply(crowd))


def test_oversized_and_nameless_bodies_are_refused() -> None:
    with pytest.raises(MessageError, match="at most 8192"):
        messages.decode_body(messages.encode_body(Body("peers", 1, 1.0, False, bytes(9000))))
    for key in ("", "k" * 300):
        with pytest.raises(MessageError, match="1 to 256 characters"):
            messages.decode_body(messages.encode_body(Body(key, 1, 1.0)))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(DECODERS) - 1))
def test_garbage_raises_nothing_but_our_errors(data: bytes, which: int) -> None:
    with contextlib.suppress(DistqatError):
        DECODERS[which](data)
