"""Whether a daemon may be in the swarm at all: what no waiting cures ends it, with an exit code that says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distqat.discovery.node import DhtNode
from distqat.errors import DistqatError, IdentityError, ProtocolError

LOOK_SECONDS = 0.5


async def vet(dht: DhtNode, end: Callable[[DistqatError], None]) -> None:
    """For as long as the daemon lives. `end` is called with IdentityError when another one has had its key for longer,
    and with ProtocolError when nobody was ever met and every address that was given speaks another version."""
    has_met = False
    while True:
        has_met |= dht.num_nodes > 0
        twin, refusal = dht.twin, dht.version_refusal
        if twin is not None:
            end(
                IdentityError(
                    f"the daemon at {twin} has the same key as this one: one of them is a copy; "
                    "delete the key in its state folder to make it a new peer"
                )
            )
            return
        if refusal and not has_met:
            end(ProtocolError(f"no address that was given speaks this version of the protocol: {refusal}"))
            return
        await asyncio.sleep(LOOK_SECONDS)
