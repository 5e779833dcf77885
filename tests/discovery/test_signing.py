"""Keys, ids and the seal on a record."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from random import Random

import pytest

from distqat.discovery.records import Body
from distqat.discovery.signing import SigningKey, check_signature, node_id, peer_id, read_body, seal
from distqat.errors import IdentityError, RecordError
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
