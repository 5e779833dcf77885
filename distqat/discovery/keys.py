"""Under which key a record lies. A key holds a set of records, one per author."""

from __future__ import annotations

import hashlib

from distqat.ids import PeerId, RunId

KEY_BYTES = 20
"""Length of a place in the DHT's key space; nodes and keys share it."""

EXPERT_SHARDS = 4
"""Keys over which the experts of a run are spread, so that no few nodes hold them all."""

PEERS = "peers"
"""That a daemon is there (PeerRecord)."""

RUNS = "runs"
"""Which runs there are (ConfigRecord): a joiner that knows only an address begins here."""


def config(run: RunId) -> str:
    """Who hands out the run's config (ConfigRecord)."""
    return f"run/{run}/config"


def experts(run: RunId, shard: int) -> str:
    """What the experts of one shard do (ExpertRecord)."""
    return f"run/{run}/experts/{shard}"


def expert_shard(peer: PeerId) -> int:
    """The shard in which that expert's record lies."""
    return int(peer[:8], 16) % EXPERT_SHARDS


def trainers(run: RunId) -> str:
    """What the trainers do (TrainerRecord)."""
    return f"run/{run}/trainers"


def clients(run: RunId) -> str:
    """Which clients there are (ClientRecord)."""
    return f"run/{run}/clients"


def key_id(key: str) -> bytes:
    """The key's place in the key space: 20 bytes."""
    return hashlib.sha256(key.encode()).digest()[:KEY_BYTES]
