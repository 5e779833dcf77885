"""The answering side of flow C. Whoever asks is remembered, but told to others only after it has answered itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import accumulate

from distqat.discovery import messages
from distqat.discovery.calls import Contact, FindNodeReply, FindValueReply, Life, PingReply, StoreReply
from distqat.discovery.protocol import DhtProtocol, to_contact
from distqat.discovery.records import SignedRecord
from distqat.errors import RecordError
from distqat.rpc.transport import Caller, Service

NUM_NAMED = 12
"""Nodes that are named in one answer: more than hold a record, few enough to be cheap."""


MAX_FOUND_BYTES = 2 << 20
"""Bytes of records in one answer; every transport takes that much."""

SEAL_BYTES = 128
"""Bytes of key, signature and framing around a body."""


class Answers:
    """One handler for each of Kademlia's calls."""

    def __init__(
        self, protocol: DhtProtocol, keep: Callable[[SignedRecord], object], prove: Callable[[bytes], Life]
    ) -> None:
        self._protocol = protocol
        self._prove = prove  # Signs a nonce, and how long this node lives.
        self._keep = keep  # Takes a record into the store and tells who watches; raises RecordError.

    def service(self) -> Service:
        """To be added to the daemon's server."""
        calls = {"Ping": self.ping, "Store": self.store, "FindNode": self.find_node, "FindValue": self.find_value}
        return Service(messages.SERVICE, calls=calls)

    async def ping(self, data: bytes, caller: Caller) -> bytes:
        """This node is there."""
        request, own = messages.decode_ping_request(data), self._protocol.own
        self._protocol.heard(request.sender)
        life = self._prove(request.nonce) if request.nonce and request.sender.id == own.id else None
        return messages.encode_ping_reply(PingReply(own, life))

    async def store(self, data: bytes, caller: Caller) -> bytes:
        """Keep what can be kept; say of the rest why not."""
        request = messages.decode_store_request(data)
        self._protocol.heard(request.sender)
        refused = []
        for record in request.records:
            try:
                self._keep(record)
            except RecordError as error:
                refused.append(error.reason)
        kept = len(request.records) - len(refused)
        return messages.encode_store_reply(StoreReply(kept, tuple(refused), self._protocol.own.id))

    async def find_node(self, data: bytes, caller: Caller) -> bytes:
        """The nodes near the target that this one knows."""
        request = messages.decode_find_node_request(data)
        self._protocol.heard(request.sender)
        reply = FindNodeReply(self._near(request.target, request.sender), self._protocol.own.id)
        return messages.encode_find_node_reply(reply)

    async def find_value(self, data: bytes, caller: Caller) -> bytes:
        """The same, and the records that it holds."""
        request = messages.decode_find_value_request(data)
        self._protocol.heard(request.sender)
        records = self._protocol.store.signed(request.target, asyncio.get_running_loop().time())
        near = self._near(request.target, request.sender)
        reply = FindValueReply(within_limits(records), near, self._protocol.own.id)
        return messages.encode_find_value_reply(reply)

    def _near(self, target: bytes, sender: Contact) -> tuple[Contact, ...]:
        return tuple(to_contact(node) for node in self._protocol.nearest(target, NUM_NAMED, exclude=sender.id))


def within_limits(records: list[SignedRecord]) -> tuple[SignedRecord, ...]:
    """As many of them as one answer takes."""
    ends = accumulate(len(record.body) + SEAL_BYTES for record in records)
    return tuple(record for record, end in zip(records, ends, strict=True) if end <= MAX_FOUND_BYTES)[
        : messages.MAX_FOUND
    ]
