"""Whether another daemon lives under the key of this one: a copy of the key, somewhere in the swarm.

Twins meet without an address: each finds what the other signs. A record alone says little, since a daemon that was
killed a moment ago leaves its own behind, under another port perhaps. So whoever answers at the address that it names
is asked: only a twin has the same id and announces itself elsewhere. Both find out; the younger one leaves. What only
the owner of the key can sign is believed: a stranger who names addresses sends nobody away.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from distqat.discovery import keys
from distqat.discovery.messages import decode_record
from distqat.discovery.protocol import DhtProtocol
from distqat.discovery.records import PeerRecord, SignedRecord
from distqat.discovery.signing import check_signature, read_body
from distqat.errors import DistqatError
from distqat.ids import Endpoint

log = logging.getLogger(__name__)

KNOCK_PAUSE = 2.0
"""Seconds before the same address is asked again."""

MAX_ASKED = 64
"""Addresses that are remembered."""


class Twins:
    """Looks at all records of the own key that come from others."""

    def __init__(self, public_key: bytes, born: int, protocol: DhtProtocol) -> None:
        """`born`: see `PeerRecord`."""
        self.elder: Endpoint | None = None  # Where a daemon answers that has the own key for longer; None: nowhere.
        self._public_key = public_key
        self._born = born
        self._protocol = protocol
        self._asked: dict[Endpoint, float] = {}  # Until when an address is not asked again.

    def __repr__(self) -> str:
        return f"<Twins: {self.elder or 'none'}, {len(self._asked)} addresses asked>"

    def saw(self, record: SignedRecord) -> None:
        """A record came from another node; if it could be of a twin, that is asked in the background."""
        if record.public_key != self._public_key:
            return
        twin, now = self._elsewhere(record), asyncio.get_running_loop().time()
        if twin is None or self._asked.get(twin.endpoint, now) > now:
            return
        while len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[twin.endpoint] = now + KNOCK_PAUSE
        self._protocol.defer(partial(self._ask, twin))

    def met(self, node_id: bytes, endpoint: Endpoint) -> None:
        """At an address that was given to this one, a daemon of that id answers, and says that it does so there."""
        if self._is_twin(node_id, endpoint):
            self.elder = endpoint

    async def _ask(self, twin: PeerRecord) -> None:
        """Does it live?"""
        own = self._protocol.own
        try:
            answered = await self._protocol.greet(twin.endpoint)
        except DistqatError as error:
            log.debug("nobody answers at %s, where this key was last: %s", twin.endpoint, error.reason)
            return
        if not self._is_twin(answered.id, answered.endpoint):
            return
        if (twin.born, twin.endpoint) < (self._born, own.endpoint):
            self.elder = answered.endpoint
        else:
            log.warning("the daemon at %s has a copy of this one's key, and has to leave", answered.endpoint)

    def _is_twin(self, node_id: bytes, endpoint: Endpoint) -> bool:
        own = self._protocol.own
        return node_id == own.id and endpoint != own.endpoint

    def _elsewhere(self, record: SignedRecord) -> PeerRecord | None:
        """What it says of a daemon elsewhere that has this key; None if it says nothing of the kind."""
        try:
            body = read_body(record)
            if body.key != keys.PEERS or body.tombstone:
                return None
            twin = decode_record(PeerRecord, body.value)
            if twin.endpoint == self._protocol.own.endpoint:
                return None
            check_signature(record)
        except DistqatError as error:
            log.debug("what is said to be of this key is not: %s", error.reason)
            return None
        return twin
