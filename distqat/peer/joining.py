"""How a daemon that knows only an address learns the run: which there are, and the config of the one it works for.

Afterwards it goes on saying how the daemon as a whole is doing: whether it has met others, and what became of each
address that it was given.
"""

from __future__ import annotations

import asyncio
import logging

from distqat.aio import Backoff
from distqat.discovery.node import DhtNode
from distqat.errors import DistqatError
from distqat.events import Kind, Subject
from distqat.ids import Endpoint, RunId
from distqat.roles.context import RoleContext
from distqat.roles.remote import Remote
from distqat.rpc.transport import Deadline
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5


class Joining:
    """Follows the directory until the run's config is here, and says what it waits for."""

    def __init__(self, context: RoleContext, dht: DhtNode, reason: Reason) -> None:
        self._transport = context.transport
        self._dht = dht
        self._directory = context.directory
        self._run = context.run
        self._events = context.telemetry.events
        self._reason = reason
        self._has_met = False  # Some other peer was there.
        self._is_leaving = False

    async def work(self) -> None:
        """Learn the run; then go on saying what the daemon does, until it leaves."""
        await self.learn_run()
        while not self._is_leaving:
            self._meet()
            self._reason.set(self._standing())
            await asyncio.sleep(LOOK_SECONDS)

    def leave(self) -> None:
        """The daemon gives its roles back and goes."""
        self._is_leaving = True
        self._reason.set("leaving: giving the roles back, one after the other")
        self._events.record(Kind.LEAVING, "gives its roles back and leaves")

    async def learn_run(self) -> None:
        """Find a run in the swarm and fetch its config from a peer that hands it out."""
        backoff = Backoff(0.1, 3.0)
        while self._run.config is None and not self._is_leaving:
            self._meet()
            offers = self._offers()
            if len(offers) == 1:
                run, endpoints = offers.popitem()
                if not backoff.attempts:
                    self._reason.set(f"fetching the config of run {run}")
                if await self._fetch(run, endpoints):
                    return
                await asyncio.sleep(backoff.next())
                continue
            self._reason.set(self._why(offers))
            await self._directory.wait_changed(self._directory.snapshot().version, Deadline.after(LOOK_SECONDS))

    def _offers(self) -> dict[RunId, list[Endpoint]]:
        """The runs of this swarm, and who hands out the config of each."""
        offers: dict[RunId, list[Endpoint]] = {}
        for entry in self._directory.snapshot().configs.values():
            offers.setdefault(entry.record.run, []).append(entry.record.endpoint)
        return offers

    async def _fetch(self, run: RunId, endpoints: list[Endpoint]) -> bool:
        for endpoint in sorted(endpoints):
            try:
                config = await Remote(self._transport, endpoint).config(run.digest)
                self._run.set(config)
            except DistqatError as error:
                self._reason.set(f"waiting: the config of run {run} from {endpoint}: {error.reason}", logging.WARNING)
                continue
            self._directory.use_run(config.id)
            self._reason.set(f"working for run {config.id}")
            text = f"works for run {config.id}, whose config it has from {endpoint}"
            self._events.record(Kind.RUN_LEARNED, text, Subject(run=str(config.id)))
            return True
        return False

    def _why(self, offers: dict[RunId, list[Endpoint]]) -> str:
        if offers:
            names = ", ".join(sorted(str(run) for run in offers))
            return f"waiting: this swarm has several runs ({names}); bring the config of one with --config"
        if self._dht.num_nodes:
            return f"waiting: none of {self._dht.num_nodes} peers knows a run yet; one needs the role client"
        if not self._dht.bootstrap_state:
            return "waiting: alone; name a peer with --join, or bring a run with --role client"
        return f"waiting: {self._nobody()}"

    def _standing(self) -> str:
        """What the daemon does once it knows the run."""
        alone = self._dht.bootstrap_state and not self._dht.num_nodes
        return f"working for run {self._run.id}" + (f", alone: {self._nobody()}" if alone else "")

    def _nobody(self) -> str:
        states = self._dht.bootstrap_state
        return "nobody answers: " + "; ".join(f"{endpoint}: {state}" for endpoint, state in states.items())

    def _meet(self) -> None:
        if not self._has_met and self._dht.num_nodes:
            self._has_met = True
            self._events.record(Kind.JOINED, f"has joined a swarm: {self._dht.num_nodes} other peers are known so far")
