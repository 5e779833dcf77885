"""A standby client whose data take long to open: whoever plans meanwhile goes on, and its books are followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from distqat.config import RunConfig
from distqat.data.claims import LedgerSnapshot
from distqat.events import Kind
from distqat.roles import client as module
from distqat.roles.context import RoleContext
from distqat.roles.provision import Provision, without_server
from distqat.roles.status import SwarmStatus
from distqat.telemetry import Reason
from tests.sim.bereaved import Learned, is_standing_by
from tests.sim.swarm import World, open_world, peer_of, steps
from tests.sim.test_checkpoints import EXACT, books
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(600)]

SAMPLES = 1438  # Of the digits, to train on.


class Opening:
    """Data servers that are pretended: that of host `slow` opens when it may, those of the others at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
        self.slow = slow
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(module, "is_served", lambda config: True)
        monkeypatch.setattr(module, "open_provision", self._open)

    @asynccontextmanager
    async def _open(self, context: RoleContext, config: RunConfig, reason: Reason) -> AsyncIterator[Provision]:
        if context.endpoint.host == self.slow:
            self.begun.set()
            await self.may_end.wait()
        yield without_server(SAMPLES)


def planned(world: World, host: str) -> int:
    """How often the daemon has begun to plan."""
    kinds = [event.kind for event in world.peers[host].context.telemetry.events.since(0)]
    return kinds.count(Kind.PLANNING) + kinds.count(Kind.TAKING_OVER)


def copied(folder: Path, host: str) -> int:
    """Samples that are committed by the host's copy of the books."""
    (path,) = (folder / host).rglob("ledger-*.json")
    books = LedgerSnapshot.from_json(path.read_text())
    return sum(end - begin for begin, end in books.committed)


def test_a_client_that_was_long_in_opening_its_data_follows_who_plans_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = Learned(monkeypatch)

    async def scenario() -> None:
        opening = Opening(monkeypatch, "late")
        async with open_world(tmp_path, *EXACT, "train.epochs=1.5") as world:
            await world.start("helper", "trainer")
            await world.start("head", "client", join="helper")
            await world.until("head", lambda s: s.run() is not None and books(s).budget)
            await world.start("late", "client", join="helper")
            await world.until("late", lambda s: is_standing_by(s, "late"))
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="helper")
            await world.until("late", lambda s: steps(s) > 5)
            await world.crash("head")
            await opening.begun.wait()
            old = copied(tmp_path, "late")
            await world.start("head", "client", join="helper")
            status = await world.until("head", lambda s: books_of(s) > old + 300, 120)
            # What is planned while the data open is copied: who plans may be gone when they are.
            assert copied(tmp_path, "late") > old
            opening.may_end.set()
            await world.until("late", lambda s: is_standing_by(s, "late"))
            assert (planned(world, "late"), planned(world, "head")) == (0, 1)
            assert peer_of(status, "head").roles[0].phase == "training"
            # Its turn comes, and it goes on with the newest books.
            await world.crash("head")
            done = await world.until("late", lambda s: s.run() is not None and books(s).finished, 600, pause=1.0)
            run = books(done)
            assert (run.committed, run.lost, run.doubled, run.open) == (run.budget, 0, 0, 0)
            assert planned(world, "late") == 1
            assert learned.samples == {run.budget}

    run_virtual(scenario(), debug=False)


def books_of(status: SwarmStatus) -> int:
    run = status.run()
    return run.committed if run is not None else 0
