"""A swarm of all roles, one daemon for each: it is bereaved of one after the other, and goes on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from distqat.discovery.signing import SigningKey
from distqat.ids import StepRef
from distqat.roles.seat import Seat as HeldSeat
from distqat.roles.status import RunStatus, SwarmStatus
from tests.sim.gate import nothing
from tests.sim.swarm import World, describe, peer_of, training

ENTRY, CLIENT, DEPUTY, TRAINER, MONITOR = "entry", "client", "deputy", "trainer", "monitor"

LEADER = "leader"
"""Not a host: whoever leads a round."""

PATIENCE = 30.0
"""Virtual seconds in which a loss is made up for, or a place found: lease, plan, fence and transfer, and a margin."""

MOST_MESSAGES = 40
"""After as many that a leader has sent or taken since it was asked to lead it is struck, at most."""


class Learned:
    """The samples of each step that a stage has learned from, whichever of its experts it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: dict[int, dict[StepRef, int]] = defaultdict(dict)  # By stage.
        hear = HeldSeat.committed

        async def committed(seat: HeldSeat, at: StepRef, samples: int) -> None:
            self.steps[int(seat.stage.index)][at] = samples
            await hear(seat, at, samples)

        monkeypatch.setattr(HeldSeat, "committed", committed)

    @property
    def samples(self) -> set[int]:
        """Learned from by each stage: one number if all are of one mind."""
        return {sum(steps.values()) for steps in self.steps.values()}


class Bereaved:
    """A swarm, and what it shows on its way."""

    def __init__(self, world: World, folder: Path, seed: int, stages: int, has_deputy: bool) -> None:
        self.draw = Random(seed)
        self.roles = {ENTRY: "expert", CLIENT: "client", TRAINER: "trainer", MONITOR: "monitor"}
        self.roles |= {DEPUTY: "client"} if has_deputy else {}
        self.roles |= {f"expert{number}": "expert" for number in range(2 * stages)}
        self.alive: set[str] = set()
        self.digests: dict[tuple[int, int], set[str]] = defaultdict(set)  # By stage and round, of whoever told of one.
        self._world = world
        self._folder = folder
        world.network.delay = 0.1  # Steps last, so that little is computed in much time.
        for host in self.roles:
            key = folder / host / "peer-0" / "key"
            key.parent.mkdir(parents=True)
            key.write_bytes(SigningKey.generate(Random(f"{seed} {host}")).to_bytes())

    async def start(self) -> None:
        """All daemons, joined through one; returns when two pipelines train."""
        for host in self.roles:
            await self._begin(host, "" if host == ENTRY else ENTRY)
        await self.until(lambda s: len(training(s)) == 2 and books(s).committed > 0, "two pipelines")

    async def bereave(self, whom: str) -> None:
        """One is gone without a word, training goes on, and it returns to its place."""
        await asyncio.sleep(self.draw.uniform(0.0, 1.0))
        victim = await self._victim(whom)
        before = books(await self.look()).committed
        await self._world.crash(victim)
        self.alive.discard(victim)
        batches = self.draw.randint(0, 4)
        if not any(self.roles[host] == "client" for host in self.alive):
            # Nobody keeps the books but the one who is gone: what is claimed is trained, then it is waited for.
            await asyncio.sleep(self.draw.uniform(0.0, 4.0))
        elif batches:
            await self._goes_on(before, batches, f"training without {victim}")
        await self._begin(victim, self.draw.choice(["", *sorted(self.alive)]))
        await self._goes_on(before, batches + 2, f"training with {victim} again")
        await self.until(lambda s: self._has_place(s, victim), f"{victim} to find its place")

    async def finish(self) -> RunStatus:
        """The books at the end of the run."""
        return books(await self.until(lambda s: s.run() is not None and books(s).finished, "the end", 400.0))

    async def look(self) -> SwarmStatus:
        """What a living daemon that sees a client says."""
        status = await self._world.status(min(self.alive, key=lambda host: (self.roles[host] != "client", host)))
        for _, expert in status.experts():
            for receipt in expert.receipts:
                self.digests[expert.stage, receipt.round].add(receipt.digest)
        return status

    async def until(
        self, condition: Callable[[SwarmStatus], object], what: str, seconds: float = PATIENCE
    ) -> SwarmStatus:
        """Look until it is so; fails after so many virtual seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition(status := await self.look()):
            assert loop.time() < end, f"waited {seconds} s in vain for {what}; {describe(status)}"
            await asyncio.sleep(0.25)
        return status

    async def _begin(self, host: str, join: str) -> None:
        """`join` is empty for one that knows its peers from before, or is the first."""
        known = self._folder / host / "peer-0" / "known_peers.json"
        if not join and self.alive and not known.exists():
            join = min(self.alive)
        await self._world.start(host, self.roles[host], join=join)
        self.alive.add(host)

    async def _goes_on(self, before: int, batches: int, what: str) -> None:
        await self.until(
            lambda s: s.run() and books(s).committed >= before + 16 * batches and len(training(s)) == 2, what
        )

    async def _victim(self, whom: str) -> str:
        if whom == LEADER:
            return await self._leader()
        if whom == CLIENT and DEPUTY in self.roles:
            status = await self.look()
            return next(host for host in (CLIENT, DEPUTY) if not is_standing_by(status, host))
        return whom

    async def _leader(self) -> str:
        """Who leads a round, amid it."""
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        experts = [host for host in self.roles if self.roles[host] == "expert"]
        for host in experts:
            self._world.gate(host).hook = partial(self._heard, host, found, [self.draw.randint(0, MOST_MESSAGES)])
        try:
            async with asyncio.timeout(PATIENCE):
                return await found
        finally:
            for host in experts:
                self._world.gate(host).hook = nothing

    @staticmethod
    async def _heard(host: str, found: asyncio.Future[str], left: list[int], what: str) -> None:
        """A host that is asked to lead counts its messages from then on."""
        if what == "Join >" or len(left) > 1:
            left.append(1)
        if len(left) > left[0] + 1 and not found.done():
            found.set_result(host)

    def _has_place(self, status: SwarmStatus, host: str) -> bool:
        if {peer.endpoint.host for peer in status.peers if peer.reachable} != set(self.roles):
            return False
        role = peer_of(status, host).role(self.roles[host])
        if role is None:
            return False
        if role.expert is not None:
            return role.expert.ready or role.expert.warm
        if self.roles[host] == "client" and DEPUTY in self.roles:
            return sorted(is_standing_by(status, client) for client in (CLIENT, DEPUTY)) == [False, True]
        return role.phase == "training" or (host == TRAINER and role.phase == "waiting")


def is_standing_by(status: SwarmStatus, host: str) -> bool:
    """Whether another client plans, as far as that one knows."""
    role = peer_of(status, host).role("client")
    return role is not None and "standing by" in role.reason


def books(status: SwarmStatus) -> RunStatus:
    """The run as its client sees it."""
    run = status.run()
    assert run is not None
    return run
