"""Flow C as bytes: Kademlia's four calls, the signed body, and what records say. Nothing of protobuf leaves this file.

Everything that arrives is checked for size and sense here: what cannot be right raises MessageError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

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
from distqat.discovery.keys import KEY_BYTES
from distqat.discovery.records import (
    Body,
    ClientRecord,
    ConfigRecord,
    ExpertRecord,
    Pace,
    PeerRecord,
    R,
    Record,
    SignedRecord,
    TrainerRecord,
)
from distqat.errors import MessageError
from distqat.ids import Endpoint, RunId
from distqat.pb import common_pb2, discovery_pb2
from distqat.rpc import mirror
from distqat.rpc.transport import Lane, Method

SERVICE = "distqat.v1.Discovery"
PING = Method(SERVICE, "Ping", Lane.CONTROL)
STORE = Method(SERVICE, "Store", Lane.CONTROL)
FIND_NODE = Method(SERVICE, "FindNode", Lane.CONTROL)
FIND_VALUE = Method(SERVICE, "FindValue", Lane.CONTROL)

NONCE_BYTES = 16
SIGNATURE_BYTES = 64

MAX_NODES = 64
"""Nodes in one answer."""

MAX_STORED = 64
"""Records in one Store."""

MAX_FOUND = 4096
"""Records in one answer to FindValue."""

MAX_BODY_BYTES = 8 << 10
"""Bytes of one record's body."""

MAX_KEY_CHARS = 256
MAX_TEXT_CHARS = 512
"""Reasons and refusals are one sentence; longer ones are cut before they are sent, and refused when received."""

MAX_ITEMS = 256
"""Roles or pipelines in one record."""

MAX_PACES = 128
"""In one record; those of further pipelines are not announced."""

M = TypeVar("M", bound=Message)

_RECORDS: dict[type, type[Message]] = {
    PeerRecord: discovery_pb2.PeerRecord,
    ConfigRecord: discovery_pb2.ConfigRecord,
    ExpertRecord: discovery_pb2.ExpertRecord,
    TrainerRecord: discovery_pb2.TrainerRecord,
    ClientRecord: discovery_pb2.ClientRecord,
}


def encode_ping_request(request: PingRequest) -> bytes:
    return discovery_pb2.PingRequest(sender=_node(request.sender), nonce=request.nonce).SerializeToString()


def decode_ping_request(data: bytes) -> PingRequest:
    message = _parse(discovery_pb2.PingRequest(), data)
    nonce = _sized(message.nonce, NONCE_BYTES, "a nonce") if message.nonce else b""
    return PingRequest(_contact(message.sender), nonce)


def encode_ping_reply(reply: PingReply) -> bytes:
    if reply.life is None:
        return discovery_pb2.PingReply(node=_node(reply.node)).SerializeToString()
    return discovery_pb2.PingReply(
        node=_node(reply.node), born=reply.life.born, signature=reply.life.signature
    ).SerializeToString()


def decode_ping_reply(data: bytes) -> PingReply:
    message = _parse(discovery_pb2.PingReply(), data)
    if not message.signature:
        return PingReply(_contact(message.node))
    signature = _sized(message.signature, SIGNATURE_BYTES, "a signature")
    return PingReply(_contact(message.node), Life(message.born, signature))


def encode_store_request(request: StoreRequest) -> bytes:
    return discovery_pb2.StoreRequest(
        sender=_node(request.sender), records=[_signed(record) for record in request.records]
    ).SerializeToString()


def decode_store_request(data: bytes) -> StoreRequest:
    message = _parse(discovery_pb2.StoreRequest(), data)
    _check_count(len(message.records), MAX_STORED, "records")
    return StoreRequest(_contact(message.sender), tuple(_record(record) for record in message.records))


def encode_store_reply(reply: StoreReply) -> bytes:
    return discovery_pb2.StoreReply(
        kept=reply.kept, refused=[_clip(reason) for reason in reply.refused], responder=reply.responder
    ).SerializeToString()


def decode_store_reply(data: bytes) -> StoreReply:
    message = _parse(discovery_pb2.StoreReply(), data)
    _check_count(len(message.refused), MAX_STORED, "refusals")
    refused = tuple(_text(reason, "refusal") for reason in message.refused)
    return StoreReply(message.kept, refused, _id(message.responder))


def encode_find_node_request(request: FindRequest) -> bytes:
    return discovery_pb2.FindNodeRequest(sender=_node(request.sender), target=request.target).SerializeToString()


def decode_find_node_request(data: bytes) -> FindRequest:
    message = _parse(discovery_pb2.FindNodeRequest(), data)
    return FindRequest(_contact(message.sender), _id(message.target))


def encode_find_node_reply(reply: FindNodeReply) -> bytes:
    nodes = [_node(contact) for contact in reply.nodes]
    return discovery_pb2.FindNodeReply(nodes=nodes, responder=reply.responder).SerializeToString()


def decode_find_node_reply(data: bytes) -> FindNodeReply:
    message = _parse(discovery_pb2.FindNodeReply(), data)
    return FindNodeReply(_contacts(message.nodes), _id(message.responder))


def encode_find_value_request(request: FindRequest) -> bytes:
    return discovery_pb2.FindValueRequest(sender=_node(request.sender), target=request.target).SerializeToString()


def decode_find_value_request(data: bytes) -> FindRequest:
    message = _parse(discovery_pb2.FindValueRequest(), data)
    return FindRequest(_contact(message.sender), _id(message.target))


def encode_find_value_reply(reply: FindValueReply) -> bytes:
    return discovery_pb2.FindValueReply(
        records=[_signed(record) for record in reply.records],
        nodes=[_node(contact) for contact in reply.nodes],
        responder=reply.responder,
    ).SerializeToString()


def decode_find_value_reply(data: bytes) -> FindValueReply:
    message = _parse(discovery_pb2.FindValueReply(), data)
    _check_count(len(message.records), MAX_FOUND, "records")
    records = tuple(_record(record) for record in message.records)
    return FindValueReply(records, _contacts(message.nodes), _id(message.responder))


def encode_body(body: Body) -> bytes:
    """The bytes that are signed; the time to live is rounded down to milliseconds."""
    return discovery_pb2.RecordBody(
        key=body.key,
        sequence=body.sequence,
        ttl_ms=int(body.ttl * 1000),
        tombstone=body.tombstone,
        value=body.value,
    ).SerializeToString()


def decode_body(data: bytes) -> Body:
    """What was signed; raises MessageError."""
    if len(data) > MAX_BODY_BYTES:
        raise MessageError(f"a record of {len(data)} bytes; at most {MAX_BODY_BYTES} are taken")
    message = _parse(discovery_pb2.RecordBody(), data)
    if not 0 < len(message.key) <= MAX_KEY_CHARS:
        raise MessageError(f"a key has 1 to {MAX_KEY_CHARS} characters, not {len(message.key)}")
    return Body(message.key, message.sequence, message.ttl_ms / 1000, message.tombstone, message.value)


def encode_record(record: Record) -> bytes:
    """The value of a body; sentences that are too long are cut, and paces beyond the most."""
    if not isinstance(record, PeerRecord | ConfigRecord):
        record = replace(record, reason=_clip(record.reason))
    if isinstance(record, TrainerRecord):
        record = replace(record, paces=record.paces[:MAX_PACES])
    return mirror.encode(record, _RECORDS[type(record)])


def decode_record(kind: type[R], data: bytes) -> R:
    """The value of a body as the kind of record that its key promises; raises MessageError."""
    record = mirror.decode(kind, data, _RECORDS[kind])
    _check_record(record)
    return record


def _check_record(record: Record) -> None:
    """Raise MessageError for what nobody would say."""
    _check_endpoint(record.endpoint)
    match record:
        case PeerRecord():
            _texts(record.roles, "role")
            _text(record.version, "version")
            if record.run is not None:
                _check_run(record.run)
        case ConfigRecord():
            _check_run(record.run)
        case ExpertRecord():
            _text(record.digest, "digest")
            _text(record.reason, "reason")
        case TrainerRecord():
            _texts(record.pipelines, "pipeline")
            _text(record.reason, "reason")
            _check_count(len(record.paces), MAX_PACES, "paces")
            for pace in record.paces:
                _check_pace(pace)
        case ClientRecord():
            _text(record.reason, "reason")


def _check_pace(pace: Pace) -> None:
    _text(pace.pipeline, "pipeline")
    if not 0.0 < pace.seconds < math.inf:
        raise MessageError(f"a pace of {pace.seconds} seconds for a microbatch")


def _check_run(run: RunId) -> None:
    if not run.name or not run.digest:
        raise MessageError("a run without a name or a digest")
    _text(run.name, "run name")
    _text(run.digest, "run digest")


def _parse(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except (DecodeError, ValueError):
        raise MessageError(f"{len(data)} bytes that are not a {type(message).__name__}") from None
    return message


def _check_count(count: int, most: int, what: str) -> None:
    if count > most:
        raise MessageError(f"{count} {what} in one message; at most {most} are taken")


def _clip(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def _text(text: str, what: str) -> str:
    if len(text) > MAX_TEXT_CHARS:
        raise MessageError(f"a {what} of {len(text)} characters; at most {MAX_TEXT_CHARS} are taken")
    return text


def _texts(texts: Iterable[str], what: str) -> tuple[str, ...]:
    found = tuple(_text(text, what) for text in texts)
    _check_count(len(found), MAX_ITEMS, f"{what}s")
    return found


def _id(data: bytes) -> bytes:
    return _sized(data, KEY_BYTES, "an id")


def _sized(data: bytes, size: int, what: str) -> bytes:
    if len(data) != size:
        raise MessageError(f"{what} has {size} bytes, not {len(data)}")
    return data


def _endpoint(endpoint: Endpoint) -> common_pb2.Endpoint:
    return common_pb2.Endpoint(host=endpoint.host, port=endpoint.port)


def _from_endpoint(message: common_pb2.Endpoint) -> Endpoint:
    endpoint = Endpoint(message.host, message.port)
    _check_endpoint(endpoint)
    return endpoint


def _check_endpoint(endpoint: Endpoint) -> None:
    if not 0 < len(endpoint.host) <= 255 or not 0 < endpoint.port < 65536:
        raise MessageError(f"'{endpoint.host[:64]}' port {endpoint.port} is not an address")


@lru_cache(4096)
def _node(contact: Contact) -> discovery_pb2.DhtNode:
    return discovery_pb2.DhtNode(id=contact.id, endpoint=_endpoint(contact.endpoint))


def _contact(message: discovery_pb2.DhtNode) -> Contact:
    return Contact(_id(message.id), _from_endpoint(message.endpoint))


def _contacts(messages: Iterable[discovery_pb2.DhtNode]) -> tuple[Contact, ...]:
    found = tuple(_contact(message) for message in messages)
    _check_count(len(found), MAX_NODES, "nodes")
    return found


def _signed(record: SignedRecord) -> discovery_pb2.SignedRecord:
    return discovery_pb2.SignedRecord(
        body=record.body,
        public_key=record.public_key,
        signature=record.signature,
        remaining_ms=max(0, int(record.remaining * 1000)),
    )


def _record(message: discovery_pb2.SignedRecord) -> SignedRecord:
    return SignedRecord(message.body, message.public_key, message.signature, message.remaining_ms / 1000)
