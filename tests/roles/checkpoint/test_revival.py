"""The client brings the stages back that nobody alive holds: in order, again if somebody fails, and books first."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from distqat import config
from distqat.data.ledger import Ledger
from distqat.data.messages import BooksAnswer
from distqat.errors import UnreachableError
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex, StepRef
from distqat.model.agreement import LossScale, Verdict
from distqat.roles.checkpoint.held_books import HELD_BOOKS
from distqat.roles.checkpoint.messages import LoadReply, LoadRequest
from distqat.roles.checkpoint.revival import LOOK_THROUGH_SECONDS, Reviver
from distqat.roles.checkpoint.words import Checkpoint, CheckpointStatus, Load
from distqat.roles.plan import ExpertView, View
from distqat.roles.status import ExpertStatus, PeerStatus, RoleStatus
from distqat.telemetry import Telemetry
from tests.support import run_virtual

RUN = config.load(None, ("model.stages=2", "checkpoint.steps=10", "lease.min=2")).run_config()
VERDICT = Verdict(1.0, LossScale())


def held(stage: int, number: int, local: bool = True) -> Checkpoint:
    at = StepRef(PipelineId("p1-old"), 10 * number)
    return Checkpoint(stage, number, f"{stage}:{number}", (at,), at if local else None, VERDICT if local else None)


class World:
    """Experts that do what they are told, unless they are out of reach."""

    def __init__(self) -> None:
        self.statuses: dict[PeerId, PeerStatus] = {}
        self.orders: list[tuple[str, int, Load]] = []
        self.silent: set[str] = set()
        self.saved: list[int] = []
        self.ledger = Ledger(1000)
        for step in range(1, 101):
            claim = self.ledger.claim("p1-old", 10, step, step)
            assert claim is not None
            self.ledger.resolve(claim.id, True)
        context: Any = SimpleNamespace(transport=self, telemetry=Telemetry())
        leases: Any = SimpleNamespace(statuses=self.statuses, seconds=2.0)
        self.reviver = Reviver(context, RUN, self.ledger, leases, self.save)

    async def save(self) -> None:
        assert self.saved or not self.orders, "the books are written before anybody is told"
        self.saved.append(self.ledger.committed)

    async def call(self, endpoint: Endpoint, method: object, request: bytes, deadline: object) -> bytes:
        if endpoint.host in self.silent:
            raise UnreachableError("it is not there")
        if method == HELD_BOOKS:
            return BooksAnswer(self.ledger.snapshot().to_json()).encode()
        asked = LoadRequest.decode(request)
        assert asked.run == RUN.id
        self.orders.append((endpoint.host, asked.stage, asked.load))
        return LoadReply(ExpertStatus()).encode()

    def add(self, name: str, *checkpoints: Checkpoint, role: str = "expert", facts: ExpertStatus | None = None) -> None:
        peer = PeerId(name)
        said = RoleStatus(role, "waiting", expert=facts or ExpertStatus(), checkpoints=CheckpointStatus(checkpoints))
        self.statuses[peer] = PeerStatus(name, Endpoint(name, 1), "0", RUN.id, (said,))

    def loaded(self, name: str, stage: int, digest: str) -> None:
        """The expert says that it is ready."""
        before = self.statuses[PeerId(name)]
        number = int(digest.split(":")[1])
        facts = ExpertStatus(seated=True, stage=stage, ready=True, round=number, digest=digest)
        roles = (replace(before.roles[0], expert=facts),)
        self.statuses[PeerId(name)] = replace(before, roles=roles)

    async def act(self, seconds: float) -> bool:
        """Look again and again for so long; what the last look said."""
        end, said = asyncio.get_running_loop().time() + seconds, False
        while asyncio.get_running_loop().time() < end:
            said = await self.reviver.act(True)
            await asyncio.sleep(0.25)
        return said

    def view(self) -> View:
        experts = [
            ExpertView(peer, status.endpoint, StageIndex(facts.stage), facts.ready)
            for peer, status in self.statuses.items()
            if (facts := status.roles[0].expert) is not None and facts.seated
        ]
        return View(2, tuple(experts), (PeerId("tina"),))


def test_books_that_somebody_has_are_waited_for_before_anything_is_loaded() -> None:
    async def scenario() -> None:
        world = World()
        mine = world.reviver._ledger = Ledger(1000)
        world.add("alice", held(0, 4))
        world.add("bob", held(1, 4))
        status = world.statuses[PeerId("bob")]
        found = CheckpointStatus((held(1, 4),), books=100)
        world.statuses[PeerId("bob")] = replace(status, roles=(replace(status.roles[0], checkpoints=found),))
        world.silent = {"bob"}
        assert await world.act(20.0)
        assert world.reviver.reason == "waiting: the books are to be had of bob"
        assert (world.saved, world.orders, mine.is_new) == ([], [], True)
        world.silent = set()
        assert await world.act(1.0)
        assert mine.committed == 400
        assert {name for name, _, _ in world.orders} == {"alice", "bob"}

    run_virtual(scenario())


def test_the_books_go_back_before_the_holders_are_told_and_the_pipeline_goes_on() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice", held(0, 6), held(0, 4))
        assert await world.act(20.0)
        assert "nobody who is here has a checkpoint of stage 1 of 2" in world.reviver.reason
        world.add("bob", held(1, 4))
        assert await world.act(20.0)
        assert world.saved == [400]
        assert set(world.orders) == {
            ("alice", 0, Load(4, "0:4", with_local=True)),
            ("bob", 1, Load(4, "1:4", with_local=True)),
        }
        world.loaded("alice", 0, "0:4")
        assert await world.act(1.0)
        assert "waiting for bob" in world.reviver.reason
        world.loaded("bob", 1, "1:4")
        assert not await world.act(1.0)
        (form,) = world.reviver.take(world.view())
        route = (
            Seat(PeerId("alice"), Endpoint("alice", 1), StageIndex(0)),
            Seat(PeerId("bob"), Endpoint("bob", 1), StageIndex(1)),
        )
        assert (form.id, form.route, form.trainer) == (None, route, "tina")
        assert form.begin is not None
        assert (form.begin.step, form.begin.verdict) == (40, VERDICT)
        assert not world.reviver.take(world.view())

    run_virtual(scenario())


def test_moments_that_fit_are_taken_soon_and_others_only_after_a_while() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice", held(0, 4))
        world.add("bob", held(1, 4))
        assert await world.act(1.0)
        assert not world.orders
        await world.act(2.0)
        assert world.orders
        other = World()
        other.add("alice", held(0, 6), held(0, 4))
        other.add("bob", held(1, 4))
        await other.act(9.0)
        assert not other.orders
        await other.act(2.0)
        assert other.orders

    run_virtual(scenario())


def test_a_holder_that_is_lost_on_the_way_is_replaced_by_another_or_waited_for() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice", held(0, 6), held(0, 4))
        world.add("bob", held(1, 6))
        world.silent.add("bob")
        await world.act(5.0)
        assert world.saved == [600]
        world.loaded("alice", 0, "0:6")
        del world.statuses[PeerId("bob")]
        # Alice alone is no run: nobody goes on with a stage of another moment.
        assert await world.act(30.0)
        assert "stage 1 of 2" in world.reviver.reason
        world.orders.clear()
        world.add("carol", held(1, 4))
        assert await world.act(15.0)
        assert world.saved == [600, 400]
        assert set(world.orders) == {
            ("alice", 0, Load(4, "0:4", with_local=True)),
            ("carol", 1, Load(4, "1:4", with_local=True)),
        }
        world.loaded("alice", 0, "0:4")
        world.loaded("carol", 1, "1:4")
        assert not await world.act(1.0)
        assert len(world.reviver.take(world.view())) == 1

    run_virtual(scenario())


def test_a_checkpoint_that_cannot_be_read_is_followed_by_an_older_one() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice", held(0, 6), held(0, 4))
        world.add("bob", held(1, 6), held(1, 4))
        await world.act(5.0)
        assert world.saved == [600]
        world.orders.clear()
        world.add("bob", held(1, 4))
        assert await world.act(15.0)
        assert world.saved == [600, 400]
        assert {order[1:] for order in world.orders} == {(0, Load(4, "0:4", True)), (1, Load(4, "1:4", True))}

    run_virtual(scenario())


def test_a_single_lost_stage_is_loaded_without_the_books_and_only_after_a_while() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice", held(0, 6))
        world.loaded("alice", 0, "0:9")
        world.add("bob", held(1, 6), held(1, 4))
        assert not await world.act(3 * RUN.sync.max_wait - 1.0)
        assert not world.orders
        assert await world.act(2.0)
        assert set(world.orders) == {("bob", 1, Load(6, "1:6", with_local=True))}
        assert not world.saved
        assert world.ledger.finished
        world.loaded("bob", 1, "1:6")
        assert not await world.act(1.0)
        assert not world.reviver.take(world.view())

    run_virtual(scenario())


def test_a_run_without_checkpoints_is_left_alone() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice")
        world.add("bob")
        assert not await world.act(60.0)
        assert not world.orders

    run_virtual(scenario())


def test_the_books_forget_what_every_checkpoint_has() -> None:
    async def scenario() -> None:
        world = World()
        for name, stage in (("alice", 0), ("bob", 1)):
            world.add(name, held(stage, 6), held(stage, 5))
            world.loaded(name, stage, f"{stage}:9")
        assert not await world.act(1.0)
        assert world.ledger.roll_back({}) == 500

    run_virtual(scenario())


def test_a_warm_spare_without_a_checkpoint_is_no_reason_to_fail() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice", held(0, 6))
        world.loaded("alice", 0, "0:9")
        world.add("bob", facts=ExpertStatus(follows=1, warm=True))
        assert not await world.act(1.0)
        del world.statuses[PeerId("alice")]
        # Nobody who is left has a checkpoint: no more is to be forgotten, and nothing can be loaded.
        assert not await world.act(1.0)
        assert world.ledger.roll_back({}) == 400

    run_virtual(scenario())


def test_who_holds_a_stage_alive_is_not_taken_off_it_for_another() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice", held(0, 6), held(1, 6))
        world.loaded("alice", 0, "0:9")
        assert not await world.act(4 * RUN.sync.max_wait)
        assert not world.orders
        assert "nobody who is here has a checkpoint of stage 1 of 2" in world.reviver.reason
        # From a mirror it comes to somebody who is free.
        world.add("safe", held(1, 6, local=False), role="mirror")
        world.add("bob")
        assert await world.act(1.0)
        assert set(world.orders) == {("bob", 1, Load(6, "1:6"))}

    run_virtual(scenario())


def test_what_an_earlier_client_has_left_half_loaded_is_loaded_as_a_whole() -> None:
    async def scenario() -> None:
        world = World()
        # It has died after alice had heard of it; bob has a newer one, which would be of another moment.
        world.add("alice", held(0, 4))
        world.loaded("alice", 0, "0:4")
        world.add("bob", held(1, 6), held(1, 4))
        assert await world.act(15.0)
        assert world.saved == [400]
        assert set(world.orders) == {("bob", 1, Load(4, "1:4", with_local=True))}
        world.loaded("bob", 1, "1:4")
        assert not await world.act(1.0)
        assert len(world.reviver.take(world.view())) == 1

    run_virtual(scenario())


def test_who_still_looks_through_its_checkpoints_is_waited_for_but_not_for_ever() -> None:
    async def scenario() -> None:
        world = World()
        world.add("alice", held(0, 4))
        world.add("bob", held(1, 4))
        world.add("carol")
        carol = world.statuses[PeerId("carol")]
        world.statuses[PeerId("carol")] = replace(carol, roles=(replace(carol.roles[0], checkpoints=None),))
        assert await world.act(60.0)
        assert world.reviver.reason == "waiting: some who are here still look through their checkpoints: carol"
        assert not world.orders
        await world.act(LOOK_THROUGH_SECONDS)
        assert world.orders

    run_virtual(scenario())
