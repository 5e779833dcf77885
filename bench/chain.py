"""hivemind's remote experts, chained through a client as its users do: the client calls one stage after the other with
the whole batch, computes the loss, and its autograd calls them backwards. Every tensor passes through the client.

Each stage is an expert in a server of its own; its optimizer steps at every backward, which is how hivemind works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from bench.gauge import Gauge, Reached
from bench.hivemind import Peer, open_peer
from bench.machines import Machine
from bench.recipes import Recipe

log = logging.getLogger(__name__)

COMPRESSIONS = ("NONE", "UNIFORM_8BIT")
"""The second is the fastest of its 8-bit ones (`python -m bench wire`)."""

PATIENCE = 300.0
"""Seconds for one run."""


class Chain:
    """The client, and the machines that it uses."""

    def __init__(self, recipe: Recipe, client: Peer, gauge: Gauge) -> None:
        self._recipe = recipe
        self._client = client
        self._gauge = gauge
        self._failures = 0  # Of calls, that are known of.

    async def steps_in(self, seconds: float, compression: str) -> int:
        """Steps that take about so long; at least one."""
        await self._seconds(compression, 1)
        return max(1, round(seconds / await self._seconds(compression, 1)))

    async def train(self, compression: str, steps: int) -> Reached:
        """So many steps with one of the compressions."""
        return await self._gauge.measure(steps * self._recipe.samples, lambda: self._seconds(compression, steps))

    async def _seconds(self, compression: str, steps: int) -> float:
        seconds, failures = await self._client.ask("train", compression, steps, seconds=PATIENCE)
        if failures > self._failures:
            log.warning("hivemind: %d calls failed and were repeated", failures - self._failures)
            self._failures = failures
        return float(seconds)


@asynccontextmanager
async def open_chain(recipe: Recipe, machines: Sequence[Machine]) -> AsyncIterator[Chain]:
    """A stage on each machine, and the client on the first. Raises PeerError."""
    async with AsyncExitStack() as stack:
        experts = [
            await stack.enter_async_context(open_peer("expert", machine.host, machine=machine)) for machine in machines
        ]
        client = await stack.enter_async_context(open_peer("chain", machines[0].host, machine=machines[0]))
        asked = (
            expert.ask("serve", recipe.described(), begin, end, COMPRESSIONS)
            for expert, (begin, end) in zip(experts, recipe.blocks(len(machines)), strict=True)
        )
        servers = await asyncio.gather(*asked)
        await client.ask("connect", recipe.described(), servers, COMPRESSIONS)
        yield Chain(recipe, client, Gauge(machines, [peer.pid for peer in (*experts, client)]))
