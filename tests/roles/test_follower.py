"""A spare that follows a stage: it keeps up with what is committed, whoever tells, and holds a copy of local state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distqat.averaging.averager import Outcome
from distqat.averaging.context import Context, Sibling
from distqat.discovery.records import ExpertRecord
from distqat.discovery.view import Entry, Snapshot
from distqat.errors import StaleError
from distqat.ids import Endpoint, PeerId
from distqat.model.local import LocalState
from distqat.roles import follower
from distqat.roles.copies.copy import Copy, Layout
from distqat.roles.follower import Follower
from distqat.roles.history import History
from distqat.rpc.local import Network
from distqat.sections import SyncSection
from distqat.telemetry import Reason, log
from tests.averaging.swarm import RUN, STAGE, Inline, Node, Swarm
from tests.support import run_virtual, until

SYNC = SyncSection(warmup_steps=1000, max_wait=4.0, codec="none")


class World:
    """Siblings with a seat, and followers that nobody sees as siblings."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self.siblings: dict[str, Node] = {}
        self.followers: dict[str, Follower] = {}
        self.history = History()

    def snapshot(self) -> Snapshot:
        records = {
            PeerId(name): Entry(PeerId(name), 1, ExpertRecord(Endpoint(name, 1), follows=STAGE))
            for name in self.followers
        }
        return Snapshot(version=1, run=RUN, experts=records)

    async def wait_changed(self, version: int, deadline: Any) -> Snapshot:
        await asyncio.sleep(0.5)
        return self.snapshot()

    async def round(self, *names: str, by: float = 1.0) -> None:
        """A committed round of these siblings."""

        async def synchronise(node: Node) -> Outcome:
            return await node.averager.synchronise(node.anchor + by, 8)

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(synchronise(self.siblings[name]))

    def follower(self, node: Node, copy_seconds: float = 0.0) -> Follower:
        """One that follows with that node's averager."""
        stage = SimpleNamespace(
            name="fake/1",
            index=STAGE,
            num_stages=2,
            local_state=lambda: LocalState(0, {"values/x": torch.zeros(4)}),
        )
        holding: Any = SimpleNamespace(
            stage=stage,
            circle=node.averager.context,
            averager=node.averager,
            workshop=SimpleNamespace(device=Inline()),
        )
        directory = SimpleNamespace(snapshot=self.snapshot, wait_changed=self.wait_changed)
        context: Any = SimpleNamespace(me=node.peer, directory=directory, history=self.history)
        held = self.followers[node.peer] = Follower(context, holding, Reason(log, ""), copy_seconds)
        return held


@asynccontextmanager
async def world(*names: str, spares: tuple[str, ...] = ("spare",)) -> AsyncIterator[World]:
    """Founded siblings of those names, and nodes without a seat."""
    swarm = Swarm(Network(delay=0.01), SYNC)
    here = World(swarm)
    async with AsyncExitStack() as stack:
        for name in names:
            node = here.siblings[name] = await stack.enter_async_context(swarm.node(name))
            await node.averager.found(swarm.start())
        for name in spares:
            node = await stack.enter_async_context(swarm.node(name))
            # It has no seat, so the directory lists it nowhere.
            node.is_live = False
        yield here


@asynccontextmanager
async def following(*followers: Follower) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(follower.follow()) for follower in followers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def digest(follower: Follower) -> str:
    return follower.outer.digest if follower.outer is not None else ""


def test_every_committed_round_is_here_a_moment_later() -> None:
    async def scenario() -> None:
        async with world("alice", "bob") as here:
            spare = here.follower(here.swarm.nodes[PeerId("spare")])
            assert spare.describe() == "following stage 1 of 2: waiting for what is committed"
            assert not spare.is_warm
            async with following(spare):
                for number in range(1, 6):
                    await here.round("alice", "bob")
                    await until(lambda: digest(spare) == here.siblings["alice"].digest, timeout=1.0)
                    assert spare.outer is not None
                    assert spare.outer.round == number
                assert spare.is_warm
                assert spare.describe() == "follows stage 1 of 2: round 5"

    run_virtual(scenario())


def test_who_told_is_lost_and_another_tells() -> None:
    async def scenario() -> None:
        async with world("alice", "bob") as here:
            spare = here.follower(here.swarm.nodes[PeerId("spare")])
            async with following(spare):
                await here.round("alice", "bob")
                await until(lambda: digest(spare) == here.siblings["alice"].digest)
                dead = here.siblings["bob"]
                here.swarm.crash(dead)
                dead.is_live = False
                await here.round("alice")
                await until(lambda: digest(spare) == here.siblings["alice"].digest, timeout=20.0)
                # All are gone: what is held is still there, and is the truth.
                here.swarm.crash(here.siblings["alice"])
                here.siblings["alice"].is_live = False
                await asyncio.sleep(30.0)
                assert spare.is_warm

    run_virtual(scenario())


def test_fresh_numbers_are_not_the_truth_of_a_run_that_has_committed() -> None:
    async def scenario() -> None:
        async with world("alice") as here:
            spare = here.follower(here.swarm.nodes[PeerId("spare")])
            async with following(spare):
                await until(lambda: spare.outer is not None)
                assert spare.is_warm
                here.swarm.crash(here.siblings["alice"])
                here.history.remember(RUN)
                assert not spare.is_founded
                assert not spare.is_warm

    run_virtual(scenario())


def test_spares_copy_different_siblings_and_another_one_when_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world("alice", "bob", spares=("spare-1", "spare-2")) as here:
            asked: list[tuple[str, str]] = []

            async def take(circle: Context, layout: Layout, donor: Sibling) -> Copy:
                asked.append((circle.me, donor.peer))
                if donor.peer == "bob":
                    raise StaleError("bob merges a round")
                return Copy(LocalState(len(asked), {"values/x": torch.zeros(4)}), donor.digest, (8,), 2)

            monkeypatch.setattr(follower, "take", take)
            first, second = (here.follower(here.swarm.nodes[PeerId(f"spare-{n}")], 1.0) for n in (1, 2))
            async with following(first, second):
                await asyncio.sleep(2.5)
                assert set(asked) == {("spare-1", "alice"), ("spare-2", "bob")}
                assert second.copy is None
                assert first.copy is not None
                assert "copy of step" in first.describe()
                assert "from alice" in first.describe()
                here.siblings["bob"].is_live = False
                await asyncio.sleep(1.0)
                assert asked[-1] in (("spare-1", "alice"), ("spare-2", "alice"))
                assert second.copy is not None

    run_virtual(scenario())
