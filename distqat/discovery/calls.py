"""What nodes of the DHT ask each other: Kademlia's four calls and their answers."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.discovery.records import SignedRecord
from distqat.ids import Endpoint


@dataclass(frozen=True)
class Contact:
    """A node of the DHT: 20 bytes of id, and where it answers."""

    id: bytes
    endpoint: Endpoint


@dataclass(frozen=True)
class PingRequest:
    """Who are you? With a nonce: prove it, if you have the key of this one."""

    sender: Contact
    nonce: bytes = b""


@dataclass(frozen=True)
class Life:
    """When the life of a node began, in milliseconds of its wall clock, and its signature (`signing.sign_life`)."""

    born: int
    signature: bytes


@dataclass(frozen=True)
class PingReply:
    """The answering node; `life` only if it was asked for by a node of the same id."""

    node: Contact
    life: Life | None = None

    @property
    def responder(self) -> bytes:
        """Its id."""
        return self.node.id


@dataclass(frozen=True)
class StoreRequest:
    """Keep these records."""

    sender: Contact
    records: tuple[SignedRecord, ...]


@dataclass(frozen=True)
class StoreReply:
    """How many are kept now, and why the others are not."""

    kept: int
    refused: tuple[str, ...]
    responder: bytes


@dataclass(frozen=True)
class FindRequest:
    """Which nodes near the target do you know (and, for FindValue, which records do you hold)?"""

    sender: Contact
    target: bytes


@dataclass(frozen=True)
class FindNodeReply:
    """Nearest known nodes, nearest first."""

    nodes: tuple[Contact, ...]
    responder: bytes


@dataclass(frozen=True)
class FindValueReply:
    """Records under the key, tombstones among them, and nearest known nodes."""

    records: tuple[SignedRecord, ...]
    nodes: tuple[Contact, ...]
    responder: bytes
