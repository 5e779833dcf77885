"""Who keeps a record, and for how long. Pure: `now` is handed in, in seconds of any clock that never goes back.

Nothing gets in that its author has not signed; only the author replaces it, by a higher sequence number; time to live
counts down from receipt, and no copy of an old record makes it longer.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace

from distqat.discovery.keys import key_id
from distqat.discovery.records import Body, SignedRecord, VerifiedRecord
from distqat.discovery.signing import check_signature, peer_id, read_body
from distqat.errors import RecordError
from distqat.ids import PeerId, short


@dataclass(frozen=True)
class StoreCaps:
    """The most that a store takes: bytes of a body, records of an author, under a key and in all, seconds to live."""

    body: int = 8 << 10
    author: int = 64
    key: int = 4096
    total: int = 1 << 16
    ttl: float = 3600.0


@dataclass(frozen=True)
class PutResult:
    """A record that was not refused: under which key it lies, and whether it was not held already."""

    key: str
    is_new: bool


@dataclass(frozen=True)
class _Held:
    """A record that is kept until `expires`."""

    signed: SignedRecord
    body: Body
    author: PeerId
    expires: float


class RecordStore:
    """Live records and tombstones by key and author, and the sequence numbers of those that have died."""

    def __init__(self, caps: StoreCaps | None = None) -> None:
        self.caps = caps or StoreCaps()
        self._keys: dict[bytes, dict[PeerId, _Held]] = {}
        self._of_author: Counter[PeerId] = Counter()  # Records held, by author.
        self._total = 0  # Records held.
        # Sequence number of records that have expired, and until when it is remembered; the oldest grave first.
        self._graves: OrderedDict[tuple[bytes, PeerId], tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return self._total

    def __repr__(self) -> str:
        return f"<RecordStore {len(self)} records under {len(self._keys)} keys>"

    def put(self, signed: SignedRecord, now: float) -> PutResult:
        """Take a record; raises RecordError with the reason if it is refused."""
        if len(signed.body) > self.caps.body:
            raise RecordError(f"a record of {len(signed.body)} bytes; at most {self.caps.body} are taken")
        body, author = read_body(signed), peer_id(signed.public_key)
        where = key_id(body.key)
        held = self._held(where, author, now)
        if held is not None and held.signed.body == signed.body:
            return PutResult(body.key, is_new=False)
        self._check_order(where, author, body, held)
        life = self._life(signed, body)
        check_signature(signed)
        if held is None:
            self._check_room(where, author)
        elif body.tombstone:
            # It must outlive every copy of what it withdraws.
            life = max(life, held.expires - now)
        self._keys.setdefault(where, {})[author] = _Held(signed, body, author, now + life)
        if held is None:
            self._of_author[author] += 1
            self._total += 1
        return PutResult(body.key, is_new=True)

    def get(self, where: bytes, now: float) -> list[VerifiedRecord]:
        """The live records under a key (its id), in the order of their authors; no tombstones."""
        held = self._keys.get(where, {})
        return [
            VerifiedRecord(one.body.key, author, one.body.sequence, one.body.value, one.expires - now)
            for author, one in sorted(held.items())
            if one.expires > now and not one.body.tombstone
        ]

    def signed(self, where: bytes, now: float) -> list[SignedRecord]:
        """Everything under a key as it may be handed on: tombstones too, each with what is left of its life."""
        return [
            replace(one.signed, remaining=one.expires - now)
            for one in self._keys.get(where, {}).values()
            if one.expires > now
        ]

    def sequence(self, where: bytes, author: PeerId) -> int:
        """The highest sequence number known of an author under a key, of dead records too; 0 if none."""
        held = self._keys.get(where, {}).get(author)
        return held.body.sequence if held is not None else self._graves.get((where, author), (0, 0.0))[0]

    def keys(self) -> Collection[bytes]:
        """Ids of the keys under which something is held."""
        return self._keys.keys()

    def expire(self, now: float) -> set[str]:
        """Bury what has died, forget old graves; the keys (in words) that have lost something."""
        poorer = set()
        for where, held in list(self._keys.items()):
            for one in [one for one in held.values() if one.expires <= now]:
                self._bury(where, one)
                poorer.add(one.body.key)
        while self._graves and (next(iter(self._graves.values()))[1] <= now or len(self._graves) > self.caps.total):
            self._graves.popitem(last=False)
        return poorer

    def _held(self, where: bytes, author: PeerId, now: float) -> _Held | None:
        held = self._keys.get(where, {}).get(author)
        if held is not None and held.expires <= now:
            self._bury(where, held)
            return None
        return held

    def _bury(self, where: bytes, held: _Held) -> None:
        """A record has died; a replay of it must not bring it back."""
        self._graves[where, held.author] = (held.body.sequence, held.expires + self.caps.ttl)
        self._graves.move_to_end((where, held.author))
        self._total -= 1
        self._of_author[held.author] -= 1
        if not self._of_author[held.author]:
            del self._of_author[held.author]
        del self._keys[where][held.author]
        if not self._keys[where]:
            del self._keys[where]

    def _check_order(self, where: bytes, author: PeerId, body: Body, held: _Held | None) -> None:
        known = held.body.sequence if held is not None else self.sequence(where, author)
        if body.sequence > known:
            return
        name = f"{body.key} of {short(author)}"
        if held is None:
            raise RecordError(f"{name}: number {body.sequence} has died, the last one was {known}")
        if body.sequence == known:
            raise RecordError(f"{name}: another statement with the same number {known}")
        raise RecordError(f"{name}: number {body.sequence} is older than {known}")

    def _life(self, signed: SignedRecord, body: Body) -> float:
        """Seconds to live from now."""
        if body.ttl > self.caps.ttl:
            raise RecordError(f"{body.key}: a life of {body.ttl:.0f} s; at most {self.caps.ttl:.0f} s are granted")
        life = min(signed.remaining, body.ttl)
        if life <= 0:
            raise RecordError(f"{body.key}: it has expired")
        return life

    def _check_room(self, where: bytes, author: PeerId) -> None:
        for count, most, what in (
            (self._of_author[author], self.caps.author, f"records of {short(author)}"),
            (len(self._keys.get(where, {})), self.caps.key, "records under one key"),
            (len(self), self.caps.total, "records"),
        ):
            if count >= most:
                raise RecordError(f"there is room for {most} {what}, no more")
