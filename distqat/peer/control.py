"""What the daemon answers about itself and its swarm, and what it lets others ask of it."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from distqat import __version__
from distqat.data.claims import LedgerSnapshot, claims_to_json
from distqat.data.messages import BooksAnswer, BooksRequest
from distqat.errors import DistqatError, RefusedError
from distqat.ids import Endpoint, PeerId, PipelineId, StageIndex
from distqat.model.agreement import Verdict
from distqat.peer.roster import Roster
from distqat.roles import messages
from distqat.roles.beside import DrivingRole
from distqat.roles.checkpoint.held_books import HELD_BOOKS
from distqat.roles.checkpoint.messages import LOAD, LoadReply, LoadRequest
from distqat.roles.checkpoint.words import Load
from distqat.roles.context import RoleContext, RoleOptions
from distqat.roles.events.messages import EVENTS, EventsReply, EventsRequest
from distqat.roles.inquiry import BOOKED
from distqat.roles.orders import messages as orders
from distqat.roles.orders.order import Order
from distqat.roles.remote import Remote
from distqat.roles.status import ExpertStatus, PeerStatus, Traffic
from distqat.roles.trace.messages import TRACE, TraceReply, TraceRequest
from distqat.rpc.transport import Caller, Service
from distqat.telemetry import Reason

SWARM_SECONDS = 2.0
"""A peer that does not say what it does within this long is shown as unreachable."""

SWARM_CONCURRENCY = 32
"""Peers that are asked at the same time."""


class AssignableRole(Protocol):
    """The expert, as the client's orders reach it."""

    async def assign(self, order: Order) -> ExpertStatus:
        """Be what is ordered."""
        ...


class LoadingRole(Protocol):
    """The expert, as a client lets it go on from a checkpoint."""

    async def load(self, stage: StageIndex, load: Load) -> ExpertStatus:
        """Take this stage out of that checkpoint."""
        ...


class KeepingRole(Protocol):
    """The expert or the mirror, as a client asks it for the books beside its checkpoints."""

    def books(self) -> LedgerSnapshot | None:
        """None: there are none."""
        ...


class FencedRole(Protocol):
    """The expert, as a client fences a pipeline whose trainer it has lost."""

    async def fence(self, pipeline: PipelineId, step: int, verdict: Verdict) -> orders.FenceReply:
        """Commit no further step of it; the last one."""
        ...


class Control:
    """Answers for one daemon."""

    def __init__(self, context: RoleContext, roster: Roster, reason: Reason, leaving: asyncio.Event) -> None:
        self._context = context
        self._roster = roster
        self._reason = reason
        self._leaving = leaving  # Set when somebody asked this daemon to drain.

    def service(self) -> Service:
        """The control service."""
        calls = {
            messages.HELLO: self._hello,
            messages.CONFIG: self._config,
            messages.STATUS: self._status,
            messages.SWARM: self._swarm,
            messages.METRICS: self._metrics,
            TRACE: self._trace,
            messages.ADD_ROLE: self._add_role,
            messages.DROP_ROLE: self._drop_role,
            messages.DRAIN: self._drain,
            orders.ASSIGN: self._assign,
            orders.DRIVE: self._drive,
            orders.FENCE: self._fence,
            orders.LOST: self._lost,
            LOAD: self._load,
            HELD_BOOKS: self._held_books,
            BOOKED: self._booked,
            EVENTS: self._events,
        }
        return Service(messages.SERVICE, {method.name: handler for method, handler in calls.items()})

    def status(self) -> PeerStatus:
        """What this daemon does."""
        context = self._context
        traffic = context.transport.traffic()
        return PeerStatus(
            peer=context.me,
            endpoint=context.endpoint,
            version=__version__,
            run=context.run.id,
            roles=self._roster.statuses(),
            traffic=tuple(Traffic(flow, count.sent, count.received) for flow, count in sorted(traffic.items())),
            idle_seconds=context.heartbeat.idle_seconds(),
            work_seconds=context.heartbeat.work_seconds(),
            known_peers=len(context.directory.snapshot().peers),
            reason=str(self._reason),
        )

    async def _hello(self, request: bytes, caller: Caller) -> bytes:
        context = self._context
        roles = self._roster.names()
        return messages.encode(messages.HelloReply(context.me, __version__, context.run.id, roles, caller.address))

    async def _config(self, request: bytes, caller: Caller) -> bytes:
        wanted = messages.decode(messages.ConfigRequest, request)
        config = self._context.run.config
        if config is None or (wanted.digest and wanted.digest != config.id.digest):
            raise RefusedError(f"this daemon does not hold that config; it works for run {self._context.run.id}")
        return messages.encode(messages.ConfigReply(config.id, config.canonical()))

    async def _status(self, request: bytes, caller: Caller) -> bytes:
        return messages.encode(messages.StatusReply(self.status()))

    async def _swarm(self, request: bytes, caller: Caller) -> bytes:
        snapshot = self._context.directory.snapshot()
        others = [(peer, entry.record.endpoint) for peer, entry in snapshot.peers.items() if peer != self._context.me]
        room = asyncio.Semaphore(SWARM_CONCURRENCY)

        async def ask(peer: str, endpoint: Endpoint) -> PeerStatus:
            async with room:
                try:
                    return await Remote(self._context.transport, endpoint, SWARM_SECONDS).status()
                except DistqatError as error:
                    return PeerStatus(peer=peer, endpoint=endpoint, reason=error.reason, reachable=False)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(peer, endpoint)) for peer, endpoint in sorted(others)]
        return messages.encode(messages.SwarmReply((self.status(), *(task.result() for task in asked))))

    async def _metrics(self, request: bytes, caller: Caller) -> bytes:
        after = messages.decode(messages.MetricsRequest, request).after
        lines = self._context.telemetry.since(after)
        return messages.encode(
            messages.MetricsReply(
                tuple(messages.MetricLine(m.serial, m.kind, m.time, m.labels, m.values) for m in lines)
            )
        )

    async def _trace(self, request: bytes, caller: Caller) -> bytes:
        wanted = TraceRequest.decode(request)
        return TraceReply.of(self._context.telemetry.timelines, wanted).encode()

    async def _events(self, request: bytes, caller: Caller) -> bytes:
        return EventsReply.of(self._context.telemetry.events, EventsRequest.decode(request)).encode()

    async def _add_role(self, request: bytes, caller: Caller) -> bytes:
        wanted = messages.decode(messages.RoleRequest, request)
        await self._roster.add(wanted.role, RoleOptions(stage=wanted.stage))
        return messages.encode(messages.RoleReply(self._roster.names()))

    async def _drop_role(self, request: bytes, caller: Caller) -> bytes:
        await self._roster.drop(messages.decode(messages.RoleRequest, request).role)
        return messages.encode(messages.RoleReply(self._roster.names()))

    async def _drain(self, request: bytes, caller: Caller) -> bytes:
        self._leaving.set()
        return messages.encode(messages.DrainReply(self._context.settings.daemon.drain_timeout))

    async def _assign(self, request: bytes, caller: Caller) -> bytes:
        wanted = orders.decode(orders.AssignRequest, request)
        self._context.run.check(wanted.run)
        expert = cast(AssignableRole, self._roster.get("expert"))
        answer = await expert.assign(wanted.order)
        return orders.encode(orders.AssignReply(answer))

    async def _drive(self, request: bytes, caller: Caller) -> bytes:
        wanted = orders.decode(orders.DriveRequest, request)
        self._context.run.check(wanted.run)
        trainer = cast(DrivingRole, self._roster.get("trainer"))
        answer = await trainer.drive(
            PipelineId(wanted.pipeline), wanted.epoch, wanted.route, wanted.in_order, wanted.begin
        )
        return orders.encode(orders.DriveReply(answer))

    async def _load(self, request: bytes, caller: Caller) -> bytes:
        wanted = LoadRequest.decode(request)
        self._context.run.check(wanted.run)
        expert = cast(LoadingRole, self._roster.get("expert"))
        return LoadReply(await expert.load(StageIndex(wanted.stage), wanted.load)).encode()

    async def _held_books(self, request: bytes, caller: Caller) -> bytes:
        self._context.run.check(BooksRequest.decode(request).run)
        keeping = cast(KeepingRole, self._roster.get("mirror" if "mirror" in self._roster.names() else "expert"))
        books = keeping.books()
        if books is None:
            raise RefusedError("no books of the run lie here")
        return BooksAnswer(books.to_json()).encode()

    async def _booked(self, request: bytes, caller: Caller) -> bytes:
        self._context.run.check(BooksRequest.decode(request).run)
        trainer = cast(DrivingRole, self._roster.get("trainer"))
        return BooksAnswer(claims_to_json(trainer.booked())).encode()

    async def _fence(self, request: bytes, caller: Caller) -> bytes:
        wanted = orders.decode(orders.FenceRequest, request)
        self._context.run.check(wanted.run)
        expert = cast(FencedRole, self._roster.get("expert"))
        return orders.encode(await expert.fence(PipelineId(wanted.pipeline), wanted.step, wanted.verdict))

    async def _lost(self, request: bytes, caller: Caller) -> bytes:
        told = orders.decode(orders.LostRequest, request)
        self._context.run.check(told.run)
        peer = PeerId(told.peer)
        if peer != self._context.me and not self._roster.is_judged_here(peer):
            self._context.lose(peer, told.endpoint, told.reason)
        return messages.encode(messages.Empty())
