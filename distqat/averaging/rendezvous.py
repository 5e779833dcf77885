"""Which sibling leads a round: the highest hash of (run, stage, round, peer).

Nobody is elected and nobody leads for good; whoever sees the same siblings comes to the same order.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

from distqat.averaging.group import RoundRef
from distqat.ids import PeerId


def order(round_: RoundRef, peers: Iterable[PeerId]) -> list[PeerId]:
    """The peers in the order in which they are asked to lead."""
    return sorted(set(peers), key=lambda peer: _rank(round_, peer), reverse=True)


def outranks(round_: RoundRef, first: PeerId, second: PeerId) -> bool:
    """Whether the first peer comes before the second in that order."""
    return _rank(round_, first) > _rank(round_, second)


@functools.lru_cache(maxsize=4096)
def _rank(round_: RoundRef, peer: PeerId) -> tuple[bytes, PeerId]:
    text = f"{round_.run.name}|{round_.run.digest}|{round_.stage}|{round_.number}|{peer}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest(), peer
