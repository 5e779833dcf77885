"""Into the swarm, and to stay in it: addresses that were given, peers known from before, and buckets kept fresh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from random import Random

from distqat.aio import Backoff
from distqat.discovery.crawl import NodeCrawl
from distqat.discovery.keys import KEY_BYTES
from distqat.discovery.protocol import DhtProtocol, to_contact
from distqat.discovery.twins import Twins
from distqat.errors import DistqatError, ProtocolError
from distqat.ids import Endpoint

log = logging.getLogger(__name__)

TRYING = "trying"
JOINED = "joined"
ITSELF = "this daemon itself"

FIRST_PAUSE = 2.0
"""Seconds to the second refresh; while nobody is known, to each."""

NEIGHBOURS = 12
"""Nodes around the own place that are to be known."""

KNOCKS = 3
"""Peers from before that are tried at each refresh: who was behind a cut link is found again so."""

MAX_BUCKETS = 2
"""Buckets that one refresh looks into."""


class Bootstrap:
    """Which addresses were tried, and what became of each (`state`, in words)."""

    def __init__(self, protocol: DhtProtocol, random: Random, twins: Twins, on_met: Callable[[], None]) -> None:
        self.state: dict[Endpoint, str] = {}
        self.has_refreshed = False  # Peers from before have been tried once.
        self._refused: set[Endpoint] = set()  # Addresses where another version of the protocol is spoken.
        self._protocol = protocol
        self._random = random
        self._twins = twins
        self._on_met = on_met  # Called when a part of the swarm was met that was not known.
        self._around = float("-inf")  # When the own neighbours were last looked for.
        self._looked: dict[tuple[int, int], float] = {}  # When each bucket (by its range) was last looked into.

    def __repr__(self) -> str:
        return f"<Bootstrap {'; '.join(f'{endpoint}: {state}' for endpoint, state in self.state.items()) or 'alone'}>"

    @property
    def is_hopeless(self) -> bool:
        """Nobody was named who might still answer, and of the peers from before none does."""
        return self.has_refreshed and all(state == ITSELF for state in self.state.values())

    @property
    def version_refusal(self) -> str:
        """What the last address says, if all that were given speak another version of the protocol; else empty."""
        others = [endpoint for endpoint, state in self.state.items() if state != ITSELF]
        return self.state[others[-1]] if others and self._refused >= set(others) else ""

    def add(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """Addresses to be joined through; those among them that are new."""
        new = [endpoint for endpoint in dict.fromkeys(endpoints) if endpoint not in self.state]
        self.state.update(dict.fromkeys(new, TRYING))
        return new

    async def join(self, endpoint: Endpoint) -> None:
        """Try one address until it answers."""
        backoff = Backoff(first=0.2, most=self._protocol.settings.backoff, random=self._random)
        while True:
            if await self._knock(endpoint):
                return
            await asyncio.sleep(backoff.next())

    async def keep_fresh(self) -> None:
        """Refresh for ever: soon after the start, then ever more seldom; at once when all others were lost."""
        alone = self._protocol.alone
        backoff = Backoff(FIRST_PAUSE, max(FIRST_PAUSE, self._protocol.settings.refresh), self._random)
        while True:
            alone.clear()
            await self.refresh()
            self.has_refreshed = True
            if not len(self._protocol.router):
                backoff.reset()
            try:
                async with asyncio.timeout(backoff.next()):
                    await alone.wait()
            except TimeoutError:
                continue

    async def refresh(self) -> None:
        """Knock at peers from before, look for the own neighbours and into buckets that nobody looked into lately."""
        here = {to_contact(node).endpoint for node in self._protocol.router.nodes()} | {self._protocol.own.endpoint}
        absent = [*(seed for seed in self.state if seed not in here), *self._protocol.known.others(here)]
        missing = list(dict.fromkeys(endpoint for endpoint in absent if self.state.get(endpoint) != ITSELF))
        async with asyncio.TaskGroup() as group:
            for endpoint in self._random.sample(missing, min(KNOCKS, len(missing))):
                group.create_task(self._knock(endpoint), name=f"knock at {endpoint}")
        idle = asyncio.get_running_loop().time() - self._around
        num_nodes = len(self._protocol.router)
        if 0 < num_nodes < NEIGHBOURS or (num_nodes and idle >= self._protocol.settings.refresh / 2):
            await self._look_around()

    async def _knock(self, endpoint: Endpoint) -> bool:
        """Meet whoever is at an address; False if nobody is."""
        known = {node.id for node in self._protocol.router.nodes()}
        nonce = self._twins.draw()
        try:
            reply = await self._protocol.greet(endpoint, nonce)
            is_itself = self._twins.judge(reply, nonce)
        except DistqatError as error:
            (self._refused.add if isinstance(error, ProtocolError) else self._refused.discard)(endpoint)
            self._note(endpoint, error.reason)
            return False
        self._refused.discard(endpoint)
        if is_itself:
            self._note(endpoint, ITSELF)
            return True
        self._note(endpoint, JOINED)
        if reply.responder not in known:
            self._looked.clear()
            await self._look_around()
            self._on_met()
        return True

    def _note(self, endpoint: Endpoint, state: str) -> None:
        """Only of addresses that were given; logged when it changes."""
        if self.state.get(endpoint, state) != state:
            log.info("bootstrap %s: %s", endpoint, state)
            self.state[endpoint] = state

    async def _look_around(self) -> None:
        """Crawl to the own place, then to a random one in each bucket that is due."""
        now = self._around = asyncio.get_running_loop().time()
        await NodeCrawl(self._protocol, self._protocol.own.id, NEIGHBOURS).find()
        for low, high in self._stale_buckets(now):
            self._looked[low, high] = now
            place = self._random.randint(low, min(high, 2 ** (8 * KEY_BYTES) - 1))
            target = place.to_bytes(KEY_BYTES, "big")
            await NodeCrawl(self._protocol, target, self._protocol.settings.replication).find()

    def _stale_buckets(self, now: float) -> list[tuple[int, int]]:
        """Ranges of the buckets into which nobody has looked for long, the longest first."""
        ranges = [bucket.range for bucket in self._protocol.router.buckets]
        self._looked = {one: moment for one, moment in self._looked.items() if one in ranges}
        stale_since = now - 4 * self._protocol.settings.refresh
        stale = [one for one in ranges if self._looked.get(one, stale_since) <= stale_since]
        return sorted(stale, key=lambda one: self._looked.get(one, stale_since))[:MAX_BUCKETS]
