"""How a daemon that knows only an address learns the run: which there are, and the config of the one it works for."""

from __future__ import annotations

import asyncio
import logging

from distqat.aio import Backoff
from distqat.discovery.directory import Directory
from distqat.discovery.node import DhtNode
from distqat.errors import DistqatError
from distqat.ids import Endpoint, RunId
from distqat.roles.context import RunHolder
from distqat.roles.remote import Remote
from distqat.rpc.transport import Deadline, Transport
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5


class Joining:
    """Follows the directory until the run's config is here, and says what it waits for."""

    def __init__(
        self, transport: Transport, dht: DhtNode, directory: Directory, run: RunHolder, reason: Reason
    ) -> None:
        self._transport = transport
        self._dht = dht
        self._directory = directory
        self._run = run
        self._reason = reason

    async def learn_run(self) -> None:
        """Find a run in the swarm and fetch its config from a peer that hands it out."""
        backoff = Backoff(0.1, 3.0)
        while self._run.config is None:
            offers = self._offers()
            if len(offers) == 1:
                run, endpoints = offers.popitem()
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
            return True
        return False

    def _why(self, offers: dict[RunId, list[Endpoint]]) -> str:
        if offers:
            names = ", ".join(sorted(str(run) for run in offers))
            return f"waiting: this swarm has several runs ({names}); bring the config of one with --config"
        if self._dht.num_nodes:
            return f"waiting: none of {self._dht.num_nodes} peers knows a run yet; one needs the role client"
        states = self._dht.bootstrap_state
        if not states:
            return "waiting: alone; name a peer with --join, or bring a run with --role client"
        return "waiting: nobody answers: " + "; ".join(f"{endpoint}: {state}" for endpoint, state in states.items())
