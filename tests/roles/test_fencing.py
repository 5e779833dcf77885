"""A pipeline without a trainer ends: who must have said so, and what stands in the books then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from distqat.data.ledger import Ledger
from distqat.errors import RefusedError
from distqat.ids import Endpoint, PeerId, PipelineId, RunId, Seat, StageIndex
from distqat.model.agreement import LossScale, Verdict
from distqat.roles import messages
from distqat.roles.fencing import Fencing
from distqat.roles.leases import Leases
from distqat.roles.orders import messages as orders
from distqat.roles.status import ExpertStatus, PeerStatus, RoleStatus
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service
from tests.support import run_virtual

RUN = RunId("run", "0" * 32)
PIPELINE = PipelineId("p1")
AS_IT_IS = Verdict(1.0, LossScale())
CUT = Verdict(0.5, LossScale(8.0, 3))


class Expert:
    """Answers as one that has committed `last`, and holds the gradients of the step after it if `is_behind`."""

    def __init__(self, last: orders.FenceReply, is_behind: bool = False) -> None:
        self.last = last
        self.is_behind = is_behind
        self.asked: list[orders.FenceRequest] = []
        self.refusal = ""

    async def fence(self, request: bytes, caller: Caller) -> bytes:
        wanted = orders.decode(orders.FenceRequest, request)
        self.asked.append(wanted)
        if self.refusal:
            raise RefusedError(self.refusal)
        if self.is_behind and wanted.step == self.last.step + 1:
            self.last = orders.FenceReply(wanted.step, self.last.claim + 1, wanted.verdict)
        return orders.encode(self.last)


class World:
    """Experts, a client's books and leases; four claims of the pipeline are open."""

    def __init__(self, network: Network, experts: dict[str, Expert]) -> None:
        self.network = network
        self.experts = experts
        self.ledger = Ledger(100)
        self.claims = [claim for n in range(1, 5) if (claim := self.ledger.claim(PIPELINE, 10, n)) is not None]
        self.leases = Leases(2.0)
        for name in experts:
            role = RoleStatus("expert", "training", expert=ExpertStatus(seated=True))
            status = PeerStatus(PeerId(name), Endpoint(name, 1), run=RUN, roles=(role,))
            self.leases.answered(PeerId(name), status, 0.0)
        self.fencing = Fencing(network.transport("client"), RUN, self.ledger, self.leases)
        self.route = tuple(
            Seat(PeerId(name), Endpoint(name, 1), StageIndex(index)) for index, name in enumerate(experts)
        )


@asynccontextmanager
async def open_world(**experts: Expert) -> AsyncIterator[World]:
    network = Network()
    async with asyncio.TaskGroup() as group, _Servers(network, group) as servers:
        for name, expert in experts.items():
            await servers.start(name, expert)
        yield World(network, experts)


class _Servers:
    """Whatever listens, until the end."""

    def __init__(self, network: Network, group: asyncio.TaskGroup) -> None:
        self._network = network
        self._group = group
        self._over = asyncio.Event()

    async def __aenter__(self) -> _Servers:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()

    async def start(self, name: str, expert: Expert) -> None:
        listening = asyncio.Event()
        self._group.create_task(self._serve(name, expert, listening))
        await listening.wait()

    async def _serve(self, name: str, expert: Expert, listening: asyncio.Event) -> None:
        async with self._network.transport(name).serve(Endpoint(name, 1)) as server:
            server.add(Service(messages.SERVICE, {orders.FENCE.name: expert.fence}))
            listening.set()
            await self._over.wait()


def said(step: int, claim: int, verdict: Verdict = AS_IT_IS) -> orders.FenceReply:
    return orders.FenceReply(step, claim, verdict)


def books(world: World) -> tuple[int, int, int, int]:
    ledger = world.ledger
    return ledger.committed, ledger.open, ledger.lost, ledger.doubled


def test_what_is_committed_is_booked_and_the_rest_is_free() -> None:
    async def scenario() -> None:
        async with open_world(alice=Expert(said(2, 2)), bob=Expert(said(2, 2))) as world:
            assert await world.fencing.end(PIPELINE, world.route)
            assert books(world) == (20, 0, 0, 0)
            assert [len(expert.asked) for expert in world.experts.values()] == [1, 1]

    run_virtual(scenario(), 60.0)


def test_a_stage_that_has_not_heard_of_the_last_commit_is_told_how_it_was_decided() -> None:
    async def scenario() -> None:
        async with open_world(alice=Expert(said(3, 3, CUT)), bob=Expert(said(2, 2), is_behind=True)) as world:
            assert await world.fencing.end(PIPELINE, world.route)
            assert world.experts["bob"].last == said(3, 3, CUT)
            assert [request.step for request in world.experts["bob"].asked] == [0, 3]
            assert books(world) == (30, 0, 0, 0)

    run_virtual(scenario(), 60.0)


def test_an_expert_that_is_not_on_the_route_applies_nothing() -> None:
    async def scenario() -> None:
        async with open_world(alice=Expert(said(3, 3)), former=Expert(said(2, 2), is_behind=True)) as world:
            assert await world.fencing.end(PIPELINE, world.route[:1])
            assert world.experts["former"].last == said(2, 2)

    run_virtual(scenario(), 60.0)


def test_without_a_route_whoever_is_behind_is_told() -> None:
    async def scenario() -> None:
        async with open_world(alice=Expert(said(3, 3, CUT)), bob=Expert(said(2, 2), is_behind=True)) as world:
            assert await world.fencing.end(PIPELINE)
            assert world.experts["bob"].last == said(3, 3, CUT)
            assert books(world) == (30, 0, 0, 0)

    run_virtual(scenario(), 60.0)


def test_an_expert_role_that_was_given_up_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with open_world(alice=Expert(said(2, 2))) as world:
            given_up = RoleStatus("expert", "failed", "it failed 20 times in a row")
            status = PeerStatus(PeerId("bob"), Endpoint("bob", 1), run=RUN, roles=(given_up,))
            world.leases.answered(PeerId("bob"), status, 0.0)
            assert await world.fencing.end(PIPELINE, world.route)
            assert books(world) == (20, 0, 0, 0)

    run_virtual(scenario(), 60.0)


def test_nothing_is_handed_out_before_every_live_expert_has_answered() -> None:
    async def scenario() -> None:
        async with open_world(alice=Expert(said(2, 2)), bob=Expert(said(2, 2))) as world:
            world.experts["bob"].refusal = "the route is still ending here"
            assert not await world.fencing.end(PIPELINE, world.route)
            assert books(world) == (0, 40, 0, 0)
            world.experts["bob"].refusal = ""
            world.network.partition({"client"}, {"bob"})
            assert not await world.fencing.end(PIPELINE, world.route)
            assert books(world) == (0, 40, 0, 0)
            # Lost: the others refuse every route that it is on.
            del world.leases.statuses[PeerId("bob")]
            assert await world.fencing.end(PIPELINE, world.route)
            assert books(world) == (20, 0, 0, 0)

    run_virtual(scenario(), 60.0)


def test_a_client_that_sees_no_expert_at_all_hands_nothing_out() -> None:
    async def scenario() -> None:
        async with open_world() as world:
            assert not await world.fencing.end(PIPELINE)
            assert books(world) == (0, 40, 0, 0)

    run_virtual(scenario(), 60.0)
