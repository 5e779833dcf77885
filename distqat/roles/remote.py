"""Another daemon, as this one speaks to it through its control service."""

from __future__ import annotations

from typing import Any, TypeVar

from distqat.config import RunConfig
from distqat.errors import WrongRunError
from distqat.ids import Endpoint, PipelineId, RunId, Seat
from distqat.model.agreement import Verdict
from distqat.roles import messages
from distqat.roles.checkpoint.messages import LOAD, LoadReply, LoadRequest
from distqat.roles.checkpoint.words import Begin, Load
from distqat.roles.events.messages import EVENTS, EventsReply, EventsRequest
from distqat.roles.orders import messages as orders
from distqat.roles.orders.order import Order
from distqat.roles.status import ExpertStatus, PeerStatus, PipelineStatus, SwarmStatus
from distqat.roles.trace.messages import MAX_SPANS, TRACE, TraceReply, TraceRequest
from distqat.rpc.transport import Deadline, Method, Transport

T = TypeVar("T")

CALL_SECONDS = 3.0
"""A control call that takes longer has failed; callers with less time hand down their own deadline."""


class Remote:
    """The daemon at an endpoint. Every method raises RpcError, or what the daemon itself raised."""

    def __init__(self, transport: Transport, endpoint: Endpoint, seconds: float = CALL_SECONDS) -> None:
        self._transport = transport
        self.endpoint = endpoint
        self.seconds = seconds

    async def hello(self) -> messages.HelloReply:
        """Who is it?"""
        return await self._ask(messages.HELLO, messages.Empty(), messages.HelloReply)

    async def config(self, digest: str = "") -> RunConfig:
        """The run's config; WrongRunError if what comes is not what its digest says."""
        reply = await self._ask(messages.CONFIG, messages.ConfigRequest(digest), messages.ConfigReply)
        config = RunConfig.from_canonical(reply.json)
        if config.id != reply.run or (digest and config.id.digest != digest):
            raise WrongRunError(f"{self.endpoint} sent a config whose digest is {config.id}, not {reply.run}")
        return config

    async def status(self) -> PeerStatus:
        """What does it do?"""
        return (await self._ask(messages.STATUS, messages.Empty(), messages.StatusReply)).status

    async def swarm(self) -> SwarmStatus:
        """What do all the peers do that it knows? It asks each of them, so this takes as long as the slowest."""
        return SwarmStatus((await self._ask(messages.SWARM, messages.Empty(), messages.SwarmReply)).peers)

    async def metrics(self, after: int) -> tuple[messages.MetricLine, ...]:
        """Its metric lines after that serial."""
        return (await self._ask(messages.METRICS, messages.MetricsRequest(after), messages.MetricsReply)).metrics

    async def trace(self, pipeline: str, first: int, last: int, most: int = MAX_SPANS) -> TraceReply:
        """Its spans of these steps of a pipeline, and its clock; `most` = 0: without spans, which is quick."""
        request = TraceRequest(pipeline, first, last, most).encode()
        return TraceReply.decode(await self._call(TRACE, request))

    async def events(self, after: int = 0, most: int = 0) -> EventsReply:
        """Its events after that serial, a page of them; `most` = 0: as many as it tells at once."""
        return EventsReply.decode(await self._call(EVENTS, EventsRequest(after, most).encode()))

    def beside(self, endpoint: Endpoint, seconds: float = CALL_SECONDS) -> Remote:
        """Another daemon, reached through the same transport."""
        return Remote(self._transport, endpoint, seconds)

    async def add_role(self, role: str, stage: int | None = None) -> tuple[str, ...]:
        """Let it take a role; the roles that it then holds."""
        return (await self._ask(messages.ADD_ROLE, messages.RoleRequest(role, stage), messages.RoleReply)).roles

    async def drop_role(self, role: str) -> tuple[str, ...]:
        """Let it give a role back; the roles that it then holds."""
        return (await self._ask(messages.DROP_ROLE, messages.RoleRequest(role), messages.RoleReply)).roles

    async def drain(self) -> float:
        """Let it leave in good order; seconds after which it gives up waiting."""
        return (await self._ask(messages.DRAIN, messages.Empty(), messages.DrainReply)).timeout

    async def assign(self, run: RunId, order: Order) -> ExpertStatus:
        """Let its expert be what is ordered."""
        request = orders.AssignRequest.of(run, order)
        return (await self._order(orders.ASSIGN, request, orders.AssignReply)).expert

    async def load(self, run: RunId, stage: int, load: Load) -> ExpertStatus:
        """Let its expert take the stage out of a checkpoint."""
        return LoadReply.decode(await self._call(LOAD, LoadRequest(run, stage, load).encode())).expert

    async def drive(
        self,
        run: RunId,
        pipeline: PipelineId,
        epoch: int,
        route: tuple[Seat, ...],
        in_order: bool = False,
        begin: Begin | None = None,
    ) -> PipelineStatus:
        """Let its trainer drive a route, at once or after the steps under way; an empty one stops the pipeline.

        `begin`: where it goes on if it is new to the trainer.
        """
        request = orders.DriveRequest(run, pipeline, epoch, route, in_order, begin)
        return (await self._order(orders.DRIVE, request, orders.DriveReply)).pipeline

    async def fence(self, run: RunId, pipeline: str, step: int, verdict: Verdict) -> orders.FenceReply:
        """Let its expert commit no further step of the pipeline, and say which was the last."""
        request = orders.FenceRequest(run, pipeline, step, verdict)
        return await self._order(orders.FENCE, request, orders.FenceReply)

    async def lost(self, run: RunId, peer: str, endpoint: Endpoint, reason: str) -> None:
        """Tell it that a peer of the run is lost."""
        await self._call(orders.LOST, orders.encode(orders.LostRequest(run, peer, endpoint, reason)))

    async def _ask(self, method: Method, request: Any, answer: type[T]) -> T:
        return messages.decode(answer, await self._call(method, messages.encode(request)))

    async def _order(self, method: Method, request: Any, answer: type[T]) -> T:
        return orders.decode(answer, await self._call(method, orders.encode(request)))

    async def _call(self, method: Method, request: bytes) -> bytes:
        return await self._transport.call(self.endpoint, method, request, Deadline.after(self.seconds))
