"""hivemind's DecentralizedAverager as a peer of our siblings: a group of them, each with a DHT node of its own.

Its best settings: groups of exactly as many as there are, so that nobody waits for more; the rest as it comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from bench.gauge import Gauge
from bench.hivemind import Peer, PeerError, open_peer
from bench.machines import Machine
from bench.runs import Run

log = logging.getLogger(__name__)

ROUND_SECONDS = 60.0
"""Until a round is given up; one that hangs takes all of them."""

PATIENCE = 120.0
"""Seconds until an answer, on top of what a round may take; the first round of blockwise 8 bit takes up to 30."""

Told = Mapping[str, Any]


class Averagers:
    """The processes."""

    def __init__(self, peers: Sequence[Peer], machines: Sequence[Machine]) -> None:
        self._peers = peers
        self._gauge = Gauge(machines, [peer.pid for peer in peers])
        self._prepared = 0

    async def prepare(self, elements: int, compressions: Sequence[str]) -> None:
        """An averager for each compression at each peer."""
        self._prepared += 1
        name = f"bench{self._prepared}"
        await asyncio.gather(
            *(
                peer.ask("prepare", rank, len(self._peers), elements, compressions, name, seconds=PATIENCE)
                for rank, peer in enumerate(self._peers)
            )
        )

    async def round(self, compression: str, is_watched: bool = False) -> Run:
        """One outer round; the anchors are put in place before."""
        await self._all("begin")
        told: list[Told] = []

        async def work() -> float:
            seconds = ROUND_SECONDS + PATIENCE
            told.extend(await self._all("average", compression, ROUND_SECONDS, is_watched, seconds=seconds))
            return _seconds(told)

        cost = await self._gauge.cost(work)
        digests = await self._all("digest", compression)
        return Run(
            seconds=cost.seconds,
            cpu=cost.cpu,
            wire=cost.wire,
            has_succeeded=all(one["size"] == len(self._peers) for one in told),
            num_results=len(set(digests)),
            formed=min(one["matched"] for one in told) - max(one["loaded"] for one in told) if is_watched else None,
            averaging=max(one["averaged"] for one in told) - min(one["loaded"] for one in told),
        )

    async def error(self, compression: str) -> float:
        """Relative L2 error of what the last round left, at the peer where it is largest."""
        return max(float(one) for one in await self._all("error", compression, len(self._peers)))

    async def kill(self, compression: str, after: float) -> Run:
        """A round in which the last peer and all it started die so long after its exchange has begun; of the others."""
        await self._all("begin")
        *others, victim = self._peers
        dying = asyncio.ensure_future(_die(victim, compression, after))
        told = await asyncio.gather(
            *(peer.ask("average", compression, ROUND_SECONDS, seconds=ROUND_SECONDS + PATIENCE) for peer in others)
        )
        await dying
        digests = await asyncio.gather(*(peer.ask("digest", compression) for peer in others))
        has_succeeded = all(one["size"] >= len(others) for one in told)
        return Run(_seconds(told), 0.0, 0, has_succeeded, len(set(digests)))

    async def _all(self, method: str, *arguments: object, seconds: float = PATIENCE) -> list[Any]:
        return list(await asyncio.gather(*(peer.ask(method, *arguments, seconds=seconds) for peer in self._peers)))


@asynccontextmanager
async def open_averagers(machines: Sequence[Machine]) -> AsyncIterator[Averagers]:
    """A peer on each of the machines, which may be one and the same. Raises PeerError."""
    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(open_peer("averager", machine.host, machine=machine))
            for machine in machines
        ]
        first, *others = peers
        addresses = await first.ask("start", [])
        await asyncio.gather(*(peer.ask("start", addresses) for peer in others))
        yield Averagers(peers, machines)


async def _die(victim: Peer, compression: str, after: float) -> None:
    try:
        await victim.ask("average", compression, ROUND_SECONDS, True, after, seconds=ROUND_SECONDS + PATIENCE)
    except PeerError:
        return
    raise AssertionError("hivemind's peer should have died")


def _seconds(told: Sequence[Told]) -> float:
    return float(max(one["ended"] for one in told) - min(one["began"] for one in told))
