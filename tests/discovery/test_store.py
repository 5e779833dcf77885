"""Who keeps a record, and for how long."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.discovery.keys import key_id
from distqat.discovery.records import Body, SignedRecord
from distqat.discovery.signing import seal
from distqat.discovery.store import RecordStore, StoreCaps
from distqat.errors import RecordError
from tests.discovery.helpers import a_key, a_record, a_tombstone, forged, values

PEERS = key_id("peers")


def test_a_record_is_kept_until_its_time_is_over() -> None:
    store = RecordStore()
    assert store.put(a_record(ttl=10), now=100).is_new
    (found,) = store.get(PEERS, now=104)
    assert (found.key, found.author, found.sequence, found.value) == ("peers", a_key(1).peer, 1, b"hello")
    assert found.remaining == pytest.approx(6)
    assert store.get(PEERS, now=110) == []
    assert store.expire(now=110) == {"peers"}
    assert len(store) == 0


def test_the_sender_may_shorten_a_life_but_not_lengthen_it() -> None:
    store = RecordStore()
    store.put(replace(a_record(ttl=10), remaining=3), now=0)
    assert store.get(PEERS, now=4) == []
    store.put(replace(a_record(author=2, ttl=10), remaining=1e9), now=0)
    assert store.get(PEERS, now=10) == []


def test_handing_on_gives_what_is_left() -> None:
    store = RecordStore()
    store.put(a_record(ttl=10), now=0)
    (copy,) = store.signed(PEERS, now=4)
    assert copy.remaining == pytest.approx(6)
    assert store.signed(PEERS, now=10) == []


def test_one_record_per_author_and_the_highest_number_wins() -> None:
    store = RecordStore()
    store.put(a_record(sequence=5, value=b"five"), now=0)
    store.put(a_record(author=2, sequence=1, value=b"other author"), now=0)
    store.put(a_record(sequence=6, value=b"six"), now=0)
    assert values(store.get(PEERS, now=1)) == [b"other author", b"six"]
    with pytest.raises(RecordError, match="number 5 is older than 6"):
        store.put(a_record(sequence=5, value=b"five"), now=0)
    assert store.sequence(PEERS, a_key(1).peer) == 6


def test_the_same_number_with_another_statement_is_refused() -> None:
    store = RecordStore()
    store.put(a_record(value=b"one"), now=0)
    with pytest.raises(RecordError, match="another statement with the same number"):
        store.put(a_record(value=b"two"), now=0)


def test_a_replay_lengthens_nothing() -> None:
    store = RecordStore()
    record = a_record(ttl=10)
    store.put(record, now=0)
    assert not store.put(record, now=9).is_new
    assert store.get(PEERS, now=10) == []


def test_a_replay_does_not_bring_back_the_dead() -> None:
    store = RecordStore()
    record = a_record(ttl=10)
    store.put(record, now=0)
    with pytest.raises(RecordError, match="has died"):
        store.put(record, now=11)
    store.expire(now=12)
    with pytest.raises(RecordError, match="has died"):
        store.put(record, now=13)
    assert store.put(a_record(sequence=2), now=14).is_new


def test_only_the_author_signs() -> None:
    store = RecordStore()
    store.put(a_record(value=b"true"), now=0)
    for lie in (
        forged(a_record(sequence=2, value=b"lie")),
        replace(a_record(sequence=2, value=b"lie"), signature=a_record().signature),
    ):
        with pytest.raises(RecordError, match="signature"):
            store.put(lie, now=0)
    # Somebody else may speak under the same key, but only for itself.
    store.put(a_record(author=2, sequence=9, value=b"other"), now=0)
    assert values(store.get(PEERS, now=0)) == [b"other", b"true"]


def test_a_tombstone_outlives_every_copy_of_what_it_withdraws() -> None:
    store = RecordStore()
    record = a_record(ttl=100)
    store.put(record, now=0)
    store.put(a_tombstone(ttl=1), now=10)
    assert store.get(PEERS, now=10) == []
    assert len(store.signed(PEERS, now=99)) == 1
    for now in (11, 50, 99, 101, 150):
        with pytest.raises(RecordError):
            store.put(record, now=now)
    assert store.get(PEERS, now=50) == []


def test_an_author_may_speak_again_after_its_tombstone() -> None:
    store = RecordStore()
    store.put(a_record(), now=0)
    store.put(a_tombstone(sequence=2), now=1)
    store.put(a_record(sequence=3, value=b"back"), now=2)
    assert values(store.get(PEERS, now=2)) == [b"back"]


def test_what_has_expired_on_the_way_is_refused() -> None:
    with pytest.raises(RecordError, match="expired"):
        RecordStore().put(replace(a_record(), remaining=0), now=0)


@pytest.mark.parametrize(
    ("caps", "record", "reason"),
    [
        (StoreCaps(body=64), a_record(author=9, value=bytes(100)), "at most 64"),
        (StoreCaps(ttl=60), a_record(author=9, ttl=61), "a life of 61 s"),
        (StoreCaps(author=2), a_record(author=1, key="third"), "room for 2 records of"),
        (StoreCaps(key=2), a_record(author=9, key="full"), "room for 2 records under one key"),
        (StoreCaps(total=4), a_record(author=9, key="fifth"), "room for 4 records, no more"),
    ],
)
def test_caps(caps: StoreCaps, record: SignedRecord, reason: str) -> None:
    store = RecordStore(caps)
    for author, key in ((1, "first"), (1, "full"), (2, "full"), (3, "other")):
        store.put(a_record(author=author, key=key), now=0)
    with pytest.raises(RecordError, match=reason):
        store.put(record, now=0)
    assert len(store) == 4
    assert store.put(a_record(author=1, key="first", sequence=2), now=0).is_new, "what is held can still be replaced"


def test_room_is_given_back() -> None:
    store = RecordStore(StoreCaps(total=1, author=1))
    for sequence in range(1, 4):
        store.put(a_record(key=f"key {sequence}", ttl=1), now=10.0 * sequence)
        assert store.expire(now=10.0 * sequence + 1) == {f"key {sequence}"}
    assert repr(store) == "<RecordStore 0 records under 0 keys>"


def test_graves_are_capped_too() -> None:
    store = RecordStore(StoreCaps(total=2))
    for author in range(1, 6):
        store.put(a_record(author=author, ttl=1), now=2.0 * author)
        store.expire(now=2.0 * author + 1)
    store.expire(now=20)
    assert sum(store.sequence(PEERS, a_key(author).peer) for author in range(1, 6)) == 2


_AUTHORS = st.integers(0, 2)
_EVENTS = st.lists(
    st.one_of(
        # The author signs its next statement (a life of 4, 8 or 16; maybe a tombstone), and it arrives.
        st.tuples(st.just("sign"), _AUTHORS, st.sampled_from([4.0, 8.0, 16.0]), st.booleans()),
        # An old statement of the author arrives again, with any claim about what is left of its life.
        st.tuples(st.just("replay"), _AUTHORS, st.integers(0, 20), st.floats(0.1, 100)),
        st.tuples(st.just("wait"), st.floats(0.1, 6.0)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(_EVENTS)
def test_the_store_agrees_with_a_dictionary(events: list[tuple[object, ...]]) -> None:
    """Whatever is replayed: what is alive is each author's latest statement, until its time is over or withdrawn."""
    store, now = RecordStore(), 0.0
    signed: dict[int, list[SignedRecord]] = {0: [], 1: [], 2: []}
    oracle: dict[int, tuple[bytes, float]] = {}
    for event in events:
        match event:
            case ("sign", int(author), float(ttl), bool(tombstone)):
                sequence = len(signed[author]) + 1
                value = b"" if tombstone else f"{author} says {sequence}".encode()
                record = seal(a_key(author), Body("peers", sequence, ttl, tombstone, value))
                signed[author].append(record)
                store.put(record, now)
                oracle[author] = (value, now + ttl)
            case ("replay", int(author), int(index), float(remaining)):
                if not signed[author]:
                    continue
                record = replace(signed[author][index % len(signed[author])], remaining=remaining)
                with contextlib.suppress(RecordError):
                    assert not store.put(record, now).is_new
            case ("wait", float(seconds)):
                now += seconds
                store.expire(now)
        alive = sorted(value for value, until in oracle.values() if value and until > now)
        assert values(store.get(PEERS, now)) == alive
