"""Keys, ids and the seal on a record."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from random import Random

import pytest

from distqat.discovery.records import Body, SignedRecord
from distqat.discovery.signing import (
    LIFE_TAG,
    SigningKey,
    check_life,
    check_signature,
    node_id,
    peer_id,
    read_body,
    seal,
    sign_life,
)
from distqat.errors import IdentityError, RecordError
from distqat.ids import Endpoint
from tests.discovery.helpers import a_key, a_record, forged


def test_the_peer_id_is_the_hash_of_the_public_key() -> None:
    key = a_key(1)
    assert key.peer == hashlib.sha256(key.public_key).hexdigest()[:40] == peer_id(key.public_key)
    assert bytes.fromhex(key.peer) == node_id(key.public_key)


def test_a_key_survives_its_bytes() -> None:
    key = SigningKey.generate(Random(5))
    again = SigningKey.from_bytes(key.to_bytes())
    assert again.peer == key.peer
    assert again.sign(b"x") == key.sign(b"x")


def test_the_secret_is_not_in_the_repr() -> None:
    key = a_key(1)
    assert repr(key) == f"<SigningKey of {key.peer[:8]}>"


def test_a_damaged_key_is_refused() -> None:
    with pytest.raises(IdentityError, match="32 bytes, not 3"):
        SigningKey.from_bytes(b"abc")


def test_what_was_sealed_can_be_read_and_checked() -> None:
    body = Body("peers", 7, 2.5, False, b"value")
    record = seal(a_key(1), body)
    check_signature(record)
    assert read_body(record) == body
    assert record.remaining == 2.5


def test_forgeries_are_found() -> None:
    record = a_record()
    other = a_record(value=b"other")
    for forgery in (
        forged(record),
        replace(record, body=other.body),
        replace(record, signature=other.signature),
        replace(record, signature=b""),
        replace(record, public_key=b"short"),
    ):
        with pytest.raises(RecordError, match=r"signature|public key"):
            check_signature(forgery)


def test_garbage_is_no_record() -> None:
    with pytest.raises(RecordError, match="not a record"):
        read_body(replace(a_record(), body=b"\xff\xff\xff"))


def test_of_a_life_nothing_can_be_changed() -> None:
    nonce, at = b"n" * 16, Endpoint("host1", 1)
    public_key, life = a_key(1).public_key, sign_life(a_key(1), nonce, 1000, at)
    check_life(public_key, nonce, life, at)
    for key, asked, said, where in (
        (a_key(2).public_key, nonce, life, at),
        (public_key, b"m" * 16, life, at),
        (public_key, nonce, replace(life, born=999), at),
        (public_key, nonce, life, Endpoint("host2", 1)),
    ):
        with pytest.raises(RecordError, match="the signature is not that of"):
            check_life(key, asked, said, where)


def test_no_signature_of_a_life_is_one_of_a_record() -> None:
    """Anybody has a daemon sign its life, with a nonce of his own choice."""
    body = Body("peers", 7, 2.5, False, b"value")
    for nonce in (seal(a_key(1), body).body[:16], b"\x0a" + bytes(15)):
        signed = LIFE_TAG + nonce + (7).to_bytes(8, "big") + b"host1:1"
        life = sign_life(a_key(1), nonce, 7, Endpoint("host1", 1))
        record = SignedRecord(signed, a_key(1).public_key, life.signature, 2.5)
        check_signature(record)  # That is what was signed,
        with pytest.raises(RecordError, match="not a record"):
            read_body(record)  # and it says nothing.
