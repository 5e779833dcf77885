"""Whether another daemon lives under the key of this one: a copy of the key, somewhere in the swarm.

Twins meet without an address: each finds what the other signs. A record alone says little, since a daemon that was
killed a moment ago leaves its own behind, under another port perhaps, and anybody can keep an old one. So whoever
answers at the address that it names is asked, and whoever answers elsewhere with the own id: only a twin can sign a
nonce that was drawn for this question, with when its life began and where it answers. The younger of the two leaves,
whichever of them asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial

from distqat.discovery import keys
from distqat.discovery.calls import Life, PingReply
from distqat.discovery.messages import NONCE_BYTES, decode_record
from distqat.discovery.protocol import DhtProtocol
from distqat.discovery.records import PeerRecord, SignedRecord
from distqat.discovery.signing import SigningKey, check_life, check_signature, read_body, sign_life
from distqat.errors import DistqatError, IdentityError, RecordError
from distqat.ids import Endpoint

log = logging.getLogger(__name__)

KNOCK_PAUSE = 2.0
"""Seconds before the same address is asked again."""

MAX_ASKED = 64
"""Addresses that are remembered."""


class Twins:
    """Looks at all records of the own key that come from others."""

    def __init__(self, key: SigningKey, born: int, protocol: DhtProtocol) -> None:
        """`born`: see `Life`."""
        self.elder: Endpoint | None = None  # Where a daemon answers that has the own key for longer; None: nowhere.
        self._key = key
        self._born = born
        self._protocol = protocol
        self._asked: dict[Endpoint, float] = {}  # Until when an address is not asked again.

    def __repr__(self) -> str:
        return f"<Twins: {self.elder or 'none'}, {len(self._asked)} addresses asked>"

    def saw(self, record: SignedRecord) -> None:
        """A record came from another node; if it could be of a twin, that is asked in the background."""
        if record.public_key != self._key.public_key:
            return
        endpoint, now = self._elsewhere(record), asyncio.get_running_loop().time()
        if endpoint is None or self._asked.get(endpoint, now) > now:
            return
        while len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[endpoint] = now + KNOCK_PAUSE
        self._protocol.defer(partial(self._ask, endpoint))

    def draw(self) -> bytes:
        """A nonce that nobody has seen, for one question."""
        return os.urandom(NONCE_BYTES)

    def prove(self, nonce: bytes) -> Life:
        """How long this daemon lives, for whoever drew the nonce."""
        return sign_life(self._key, nonce, self._born, self._protocol.own.endpoint)

    def judge(self, reply: PingReply, nonce: bytes) -> bool:
        """Whether this daemon itself has answered, rather than a stranger.

        Raises RecordError when it answers elsewhere and does not prove it, IdentityError when it does: a twin.
        """
        own, at = self._protocol.own, reply.node.endpoint
        if reply.node.id != own.id:
            return False
        if at == own.endpoint:
            return True
        if reply.life is None:
            raise RecordError(f"who answers at {at} has the id of this daemon, and does not prove it")
        check_life(self._key.public_key, nonce, reply.life, at)
        if (reply.life.born, at) < (self._born, own.endpoint):
            self.elder = at
            raise IdentityError(f"the daemon at {at} has this one's key, and for longer")
        raise IdentityError(f"the daemon at {at} has a copy of this one's key, and has to leave")

    async def _ask(self, endpoint: Endpoint) -> None:
        """Does it live?"""
        nonce = self.draw()
        try:
            self.judge(await self._protocol.greet(endpoint, nonce), nonce)
        except IdentityError as error:
            log.warning("%s", error.reason)
        except DistqatError as error:
            log.debug("no daemon with this one's key is at %s, where it was last: %s", endpoint, error.reason)

    def _elsewhere(self, record: SignedRecord) -> Endpoint | None:
        """Where it says that a daemon with this key is, if not here; None if it says nothing of the kind."""
        try:
            body = read_body(record)
            if body.key != keys.PEERS or body.tombstone:
                return None
            endpoint = decode_record(PeerRecord, body.value).endpoint
            if endpoint == self._protocol.own.endpoint:
                return None
            check_signature(record)
        except DistqatError as error:
            log.debug("what is said to be of this key is not: %s", error.reason)
            return None
        return endpoint
