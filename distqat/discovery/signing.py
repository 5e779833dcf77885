"""Who says it: Ed25519 keys, the ids that follow from them, and the seal on a record."""

from __future__ import annotations

import hashlib
from random import Random

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from distqat.discovery.calls import Life
from distqat.discovery.keys import KEY_BYTES
from distqat.discovery.messages import decode_body, encode_body
from distqat.discovery.records import Body, SignedRecord
from distqat.errors import IdentityError, MessageError, RecordError
from distqat.ids import Endpoint, PeerId, short

SECRET_BYTES = 32
PUBLIC_BYTES = 32

LIFE_TAG = b"\0distqat.v1 life\0"
"""Begins what is signed of a life. No body of a record begins so: 0 is no field of a message."""


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
    _verify(record.public_key, record.signature, record.body)


def sign_life(key: SigningKey, nonce: bytes, born: int, at: Endpoint) -> Life:
    """To whoever drew the nonce: a daemon that has the key lives since then, and says that it answers there."""
    return Life(born, key.sign(_life(nonce, born, at)))


def check_life(public_key: bytes, nonce: bytes, life: Life, at: Endpoint) -> None:
    """Raise RecordError unless the owner of the key has said just that, for this nonce."""
    _verify(public_key, life.signature, _life(nonce, life.born, at))


def _life(nonce: bytes, born: int, at: Endpoint) -> bytes:
    return LIFE_TAG + nonce + born.to_bytes(8, "big") + str(at).encode()


def _verify(public_key: bytes, signature: bytes, data: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise RecordError(f"the signature is not that of {short(peer_id(public_key))}") from None
