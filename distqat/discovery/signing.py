"""Who says it: Ed25519 keys, the ids that follow from them, and the seal on a record."""

from __future__ import annotations

import hashlib
from random import Random

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from distqat.discovery.keys import KEY_BYTES
from distqat.discovery.messages import decode_body, encode_body
from distqat.discovery.records import Body, SignedRecord
from distqat.errors import IdentityError, MessageError, RecordError
from distqat.ids import PeerId, short

SECRET_BYTES = 32
PUBLIC_BYTES = 32


def node_id(public_key: bytes) -> bytes:
    """A peer's place in the DHT: the first 20 bytes of SHA-256 of its public key."""
    return hashlib.sha256(public_key).digest()[:KEY_BYTES]


def peer_id(public_key: bytes) -> PeerId:
    """The same in hex: the peer's id everywhere else."""
    return PeerId(node_id(public_key).hex())


class SigningKey:
    """A peer's secret key; who has it is that peer."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes_raw()  # 32 bytes, known to everybody.
        self.peer = peer_id(self.public_key)

    def __repr__(self) -> str:
        return f"<SigningKey of {short(self.peer)}>"

    @classmethod
    def generate(cls, random: Random) -> SigningKey:
        """A new key; hand in `random.SystemRandom()` for a real one, a seeded generator in simulations."""
        return cls.from_bytes(random.randbytes(SECRET_BYTES))

    @classmethod
    def from_bytes(cls, secret: bytes) -> SigningKey:
        """The key that `to_bytes` gave; raises IdentityError."""
        if len(secret) != SECRET_BYTES:
            raise IdentityError(f"a secret key has {SECRET_BYTES} bytes, not {len(secret)}")
        return cls(Ed25519PrivateKey.from_private_bytes(secret))

    def to_bytes(self) -> bytes:
        """32 bytes, to be kept where only their owner can read them."""
        return self._private.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The signature: 64 bytes."""
        return self._private.sign(data)


def seal(key: SigningKey, body: Body) -> SignedRecord:
    """The body, signed, with its whole life before it."""
    data = encode_body(body)
    return SignedRecord(data, key.public_key, key.sign(data), body.ttl)


def read_body(record: SignedRecord) -> Body:
    """What the record says, whoever says it; raises RecordError if it is not a record."""
    try:
        return decode_body(record.body)
    except MessageError as error:
        raise RecordError(f"not a record: {error}") from None


def check_signature(record: SignedRecord) -> None:
    """Raise RecordError unless the owner of the record's public key has signed exactly these bytes."""
    if len(record.public_key) != PUBLIC_BYTES:
        raise RecordError(f"a public key has {PUBLIC_BYTES} bytes, not {len(record.public_key)}")
    try:
        Ed25519PublicKey.from_public_bytes(record.public_key).verify(record.signature, record.body)
    except (InvalidSignature, ValueError):
        raise RecordError(f"the signature is not that of {short(peer_id(record.public_key))}") from None
