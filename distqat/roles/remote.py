"""Another daemon, as this one speaks to it through its control service."""

from __future__ import annotations

from typing import Any, TypeVar

from distqat.config import RunConfig
from distqat.errors import WrongRunError
from distqat.ids import Endpoint, PipelineId, RunId, Seat, StageIndex
from distqat.roles import messages
from distqat.roles.status import ExpertStatus, PeerStatus, PipelineStatus, SwarmStatus
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

    async def trace(self, pipeline: str, first: int, last: int, most: int = messages.MAX_SPANS) -> messages.TraceReply:
        """Its spans of these steps of a pipeline, and its clock; `most` = 0: without spans, which is quick."""
        return await self._ask(messages.TRACE, messages.TraceRequest(pipeline, first, last, most), messages.TraceReply)

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

    async def assign(self, run: RunId, stage: StageIndex | None) -> ExpertStatus:
        """Give it a stage, or (None) take its stage away."""
        request = messages.AssignRequest(run, stage is not None, stage or 0)
        return (await self._ask(messages.ASSIGN, request, messages.AssignReply)).expert

    async def drive(self, run: RunId, pipeline: PipelineId, epoch: int, route: tuple[Seat, ...]) -> PipelineStatus:
        """Let its trainer drive a route; an empty one stops the pipeline."""
        request = messages.DriveRequest(run, pipeline, epoch, route)
        return (await self._ask(messages.DRIVE, request, messages.DriveReply)).pipeline

    async def _ask(self, method: Method, request: Any, answer: type[T]) -> T:
        deadline = Deadline.after(self.seconds)
        return messages.decode(
            answer, await self._transport.call(self.endpoint, method, messages.encode(request), deadline)
        )
