"""Flow C as bytes: Kademlia's four calls, the signed body, and what records say. Nothing of protobuf leaves this file.

Everything that arrives is checked for size and sense here: what cannot be right raises MessageError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from distqat.discovery.calls import (
    Contact,
    FindNodeReply,
    FindRequest,
    FindValueReply,
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
from distqat.ids import Endpoint, PipelineId, RunId, StageIndex
from distqat.pb import common_pb2, discovery_pb2
from distqat.rpc.transport import Lane, Method

SERVICE = "distqat.v1.Discovery"
PING = Method(SERVICE, "Ping", Lane.CONTROL)
STORE = Method(SERVICE, "Store", Lane.CONTROL)
FIND_NODE = Method(SERVICE, "FindNode", Lane.CONTROL)
FIND_VALUE = Method(SERVICE, "FindValue", Lane.CONTROL)

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


def encode_ping_request(request: PingRequest) -> bytes:
    return discovery_pb2.PingRequest(sender=_node(request.sender)).SerializeToString()


def decode_ping_request(data: bytes) -> PingRequest:
    return PingRequest(_contact(_parse(discovery_pb2.PingRequest(), data).sender))


def encode_ping_reply(reply: PingReply) -> bytes:
    return discovery_pb2.PingReply(node=_node(reply.node)).SerializeToString()


def decode_ping_reply(data: bytes) -> PingReply:
    return PingReply(_contact(_parse(discovery_pb2.PingReply(), data).node))


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
    """The value of a body."""
    message: Message
    endpoint = _endpoint(record.endpoint)
    match record:
        case PeerRecord():
            run = _run_ref(record.run) if record.run is not None else None
            message = discovery_pb2.PeerRecord(endpoint=endpoint, roles=record.roles, run=run, version=record.version)
        case ConfigRecord():
            message = discovery_pb2.ConfigRecord(run=_run_ref(record.run), endpoint=endpoint)
        case ExpertRecord():
            message = discovery_pb2.ExpertRecord(
                endpoint=endpoint,
                seated=record.seated,
                stage=record.stage,
                ready=record.ready,
                step=record.step,
                round=record.round,
                digest=record.digest,
                pinned=record.pinned,
                reason=_clip(record.reason),
            )
        case TrainerRecord():
            message = discovery_pb2.TrainerRecord(
                endpoint=endpoint, pipelines=record.pipelines, step=record.step, reason=_clip(record.reason)
            )
            for pace in record.paces[:MAX_PACES]:
                message.paces.add(pipeline=pace.pipeline, seconds=pace.seconds, microbatches=pace.microbatches)
        case ClientRecord():
            message = discovery_pb2.ClientRecord(
                endpoint=endpoint, planning=record.planning, reason=_clip(record.reason), round=record.round
            )
    return message.SerializeToString()


def decode_record(kind: type[R], data: bytes) -> R:
    """The value of a body as the kind of record that its key promises; raises MessageError."""
    record: Record
    if kind is PeerRecord:
        record = _peer_record(_parse(discovery_pb2.PeerRecord(), data))
    elif kind is ConfigRecord:
        config = _parse(discovery_pb2.ConfigRecord(), data)
        record = ConfigRecord(_run(config.run), _from_endpoint(config.endpoint))
    elif kind is ExpertRecord:
        record = _expert_record(_parse(discovery_pb2.ExpertRecord(), data))
    elif kind is TrainerRecord:
        record = _trainer_record(_parse(discovery_pb2.TrainerRecord(), data))
    else:
        client = _parse(discovery_pb2.ClientRecord(), data)
        record = ClientRecord(
            _from_endpoint(client.endpoint), client.planning, _text(client.reason, "reason"), client.round
        )
    assert isinstance(record, kind)
    return record


def _peer_record(message: discovery_pb2.PeerRecord) -> PeerRecord:
    run = _run(message.run) if message.HasField("run") else None
    roles = _texts(message.roles, "role")
    return PeerRecord(_from_endpoint(message.endpoint), roles, run, _text(message.version, "version"))


def _expert_record(message: discovery_pb2.ExpertRecord) -> ExpertRecord:
    return ExpertRecord(
        endpoint=_from_endpoint(message.endpoint),
        seated=message.seated,
        stage=StageIndex(message.stage),
        ready=message.ready,
        step=message.step,
        round=message.round,
        digest=_text(message.digest, "digest"),
        pinned=message.pinned,
        reason=_text(message.reason, "reason"),
    )


def _trainer_record(message: discovery_pb2.TrainerRecord) -> TrainerRecord:
    pipelines = tuple(PipelineId(name) for name in _texts(message.pipelines, "pipeline"))
    _check_count(len(message.paces), MAX_PACES, "paces")
    paces = tuple(_pace(pace) for pace in message.paces)
    reason = _text(message.reason, "reason")
    return TrainerRecord(_from_endpoint(message.endpoint), pipelines, message.step, reason, paces)


def _pace(message: discovery_pb2.Pace) -> Pace:
    if not 0.0 < message.seconds < math.inf:
        raise MessageError(f"a pace of {message.seconds} seconds for a microbatch")
    return Pace(PipelineId(_text(message.pipeline, "pipeline")), message.seconds, message.microbatches)


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
    if len(data) != KEY_BYTES:
        raise MessageError(f"an id has {KEY_BYTES} bytes, not {len(data)}")
    return data


def _endpoint(endpoint: Endpoint) -> common_pb2.Endpoint:
    return common_pb2.Endpoint(host=endpoint.host, port=endpoint.port)


def _from_endpoint(message: common_pb2.Endpoint) -> Endpoint:
    if not 0 < len(message.host) <= 255 or not 0 < message.port < 65536:
        raise MessageError(f"'{message.host[:64]}' port {message.port} is not an address")
    return Endpoint(message.host, message.port)


def _run_ref(run: RunId) -> common_pb2.RunRef:
    return common_pb2.RunRef(name=run.name, digest=run.digest)


def _run(message: common_pb2.RunRef) -> RunId:
    if not message.name or not message.digest:
        raise MessageError("a run without a name or a digest")
    return RunId(_text(message.name, "run name"), _text(message.digest, "run digest"))


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
