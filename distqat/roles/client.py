"""The client: owns the run. Its config, the books of who trains on which samples, and the plan of who hosts what.

It asks every peer of the run what it does, judges the answers by the lease, lets `plan` decide, and tells experts and
trainers. All it holds can be read from the swarm again, but for the ledger, which it keeps on disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from distqat.aio import Backoff, supervise
from distqat.config import RunConfig
from distqat.data.ledger import Ledger
from distqat.data.messages import SERVICE as DATA_SERVICE
from distqat.data.reading import is_served
from distqat.data.sampler import budget
from distqat.data.service import data_service
from distqat.data.sources import open_source
from distqat.discovery.records import ClientRecord
from distqat.errors import DistqatError, GoneError, StaleError
from distqat.events import Kind, Subject
from distqat.ids import Endpoint, PeerId, RunId, short
from distqat.roles.books import Books, copy_books, open_books
from distqat.roles.checkpoint.revival import Reviver
from distqat.roles.context import RESTARTS, RoleContext, RoleOptions
from distqat.roles.inquiry import Inquiry
from distqat.roles.leases import Leases
from distqat.roles.outlook import address
from distqat.roles.planner import Planner
from distqat.roles.provision import Provision, open_provision, without_server
from distqat.roles.remote import Remote
from distqat.roles.status import RoleStatus, RunStatus
from distqat.rpc.handlers import task_group
from distqat.rpc.transport import Deadline
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

SPREAD_SECONDS = 1.0
"""For telling one peer that another is lost."""

PLAN_SECONDS = 0.25
"""Between two looks at the plan when nothing is reported."""


@asynccontextmanager
async def open_role(context: RoleContext, options: RoleOptions) -> AsyncIterator[Client]:
    """Own the run while the role is held."""
    client = Client(context)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(supervise("client", client.work, Backoff(1.0, 10.0), client.failed, RESTARTS))
        try:
            yield client
        finally:
            task.cancel()
            if context.directory.run is not None:
                context.directory.withdraw(ClientRecord)


class Client:
    """Plans one run and keeps its books."""

    def __init__(self, context: RoleContext) -> None:
        self._context = context
        self._reason = Reason(log, "waiting: no run is known yet")
        self._phase = "waiting"
        self._config: RunConfig | None = None  # None until the run is known.
        self._ledger: Ledger | None = None  # None until the data set has been books.
        self._leases: Leases | None = None  # None until the run is known.
        self._planner: Planner | None = None  # None until this client plans.
        self._provision = without_server(0)  # Nothing is known before it plans.
        self._is_draining = False
        self._suspected = asyncio.Event()  # Set when the peers are to be asked at once.
        self._events = context.telemetry.events

    def __repr__(self) -> str:
        return f"<Client {self._phase}: {self._reason}; {self._ledger}>"

    def status(self) -> RoleStatus:
        """Phase, reason, and the run."""
        said = (str(self._reason), self._provision.status())
        return RoleStatus("client", self._phase, "; ".join(filter(None, said)), run=self._run_status())

    async def drain(self) -> None:
        """Plan no more; the pipelines that exist go on without this client."""
        self._is_draining = True
        self._phase = "draining"
        self._reason.set("draining: plans no more, and keeps the books until the last step is in them")

    def suspect(self, peer: PeerId) -> bool:
        """Somebody could not go on with that peer: ask at once. False: this client plans nothing, and judges nobody."""
        if self._planner is not None:
            self._suspected.set()
        return self._planner is not None

    def failed(self, error: BaseException) -> None:
        """The work failed and will be tried again."""
        self._phase = "failed"
        self._reason.set(f"{error}", logging.WARNING)

    async def work(self) -> None:
        """Stand by while another client plans; else plan, watch the leases and keep the books."""
        context = self._context
        self._config = config = await context.run.wait()
        self._leases = leases = Leases(config.lease.min)
        self._phase = "joining"
        provision: Provision | None = None
        if not is_served(config):
            self._reason.set(f"opening data source {config.data.source}")
            source = await asyncio.to_thread(open_source, config)
            provision = without_server(len(source.train))
        self._reason.set("waiting to hear who else is in the swarm")
        self._announce(False)
        await context.directory.wait_synced()
        path = context.state_dir / f"ledger-{config.id.digest}.json"
        stood_by = await self._wait_turn(path, config.id)
        has_opened = asyncio.Event()
        async with task_group() as group:
            # Opening the data may take minutes, in which another may plan.
            copying = group.create_task(self._keep_copy(path, config.id, has_opened))
            opening = nullcontext(provision) if provision else open_provision(context, config, self._reason)
            async with opening as provided:
                self._provision = provided
                has_opened.set()
                try:
                    await copying
                    await self._own(config, leases, path, stood_by)
                finally:
                    # Nothing that has ended is shown as what there is.
                    self._provision = without_server(0)

    async def _own(self, config: RunConfig, leases: Leases, path: Path, stood_by: PeerId | None) -> None:
        """Open the books, and plan, unless another has begun to meanwhile."""
        context, provision = self._context, self._provision
        positions = budget(config.train.epochs, provision.num_samples)
        inquiry = Inquiry(context, config.id, leases, partial(self._ask_all, leases), self._reason)
        while True:
            self._ledger = None
            stood_by = await self._wait_turn(path, config.id) or stood_by
            books = await asyncio.to_thread(open_books, path, positions, self._has_progress(config.id))
            self._ledger = books.ledger
            if books.ledger.is_new:
                await inquiry.find(books.ledger, self._has_progress(config.id))
            # Nothing is awaited from here to the announcement.
            if not self._rivals():
                break
        self._tell_turn(stood_by, books.ledger.committed)
        reviver = Reviver(context, config, books.ledger, leases, books.save)
        self._planner = Planner(context, config, books.ledger, leases, reviver)
        self._announce(True)
        try:
            async with task_group() as group:
                # Who is there, what it drives, and what it has claimed, before anything is decided or handed out.
                await inquiry.complete(books.ledger)
                await books.save()
                context.server.add(data_service(config.id, books.ledger, books.save, provision.where))
                group.create_task(self._watch_leases(leases))
                await self._plan(self._planner, books)
        finally:
            self._ledger = self._planner = None
            await context.server.remove(DATA_SERVICE)

    async def _wait_turn(self, path: Path, run: RunId) -> PeerId | None:
        """Stand by while another client plans, with a copy of its books; which one was the last, if there was any."""
        stood_by = None
        while rivals := self._rivals():
            self._phase = "waiting"
            if rivals[0] != stood_by:
                stood_by = rivals[0]
                self._events.record(Kind.STANDING_BY, f"{short(stood_by)} plans this run", Subject(peer=stood_by))
            self._reason.set(f"standing by: {short(rivals[0])} plans this run")
            self._announce(False)
            endpoint = self._context.directory.snapshot().clients[rivals[0]].record.endpoint
            await copy_books(path, self._context.transport, endpoint, run)
            # All of them each time: not at every word of somebody.
            await asyncio.sleep(PLAN_SECONDS)
        return stood_by

    async def _keep_copy(self, path: Path, run: RunId, enough: asyncio.Event) -> None:
        """Copy the books of whoever plans, until it is enough; then no copy is under way."""
        while not enough.is_set():
            if rivals := self._rivals():
                endpoint = self._context.directory.snapshot().clients[rivals[0]].record.endpoint
                await copy_books(path, self._context.transport, endpoint, run)
            with suppress(TimeoutError):
                async with asyncio.timeout(PLAN_SECONDS):
                    await enough.wait()

    def _tell_turn(self, stood_by: PeerId | None, committed: int) -> None:
        """This client plans from now on."""
        self._reason.set("asking every peer what it does")
        if stood_by is not None:
            self._events.record(Kind.TAKING_OVER, f"takes over from {short(stood_by)}", Subject(peer=stood_by))
        else:
            self._events.record(Kind.PLANNING, "plans this run")
        if committed:
            self._events.record(Kind.BOOKS_RESTORED, f"goes on at {committed} samples", Subject(samples=committed))

    def _rivals(self) -> list[PeerId]:
        """The other live clients that plan this run, those that stay first."""
        clients = self._context.directory.snapshot().clients
        return sorted(peer for peer, entry in clients.items() if entry.record.planning and peer != self._context.me)

    async def _wait_news(self) -> None:
        directory = self._context.directory
        await directory.wait_changed(directory.snapshot().version, Deadline.after(PLAN_SECONDS))

    def _has_progress(self, run: RunId) -> bool:
        """Whether something that was trained is held somewhere, alive or in a checkpoint; else the books would speak of
        what is gone."""
        snapshot = self._context.directory.snapshot()
        records = [entry.record for entry in snapshot.experts.values()]
        is_held = any(record.round > 0 or record.step > 0 for record in records)
        return is_held or self._context.history.has_committed(run, snapshot)

    async def _plan(self, planner: Planner, books: Books) -> None:
        while True:
            rivals = self._rivals()
            if rivals and rivals[0] < self._context.me:
                # Two began before they heard of each other: the lower name stays.
                raise StaleError(f"{short(rivals[0])} plans this run too")
            if not self._is_draining:
                await planner.act()
                self._phase = planner.phase
                self._reason.set(f"{books.fault}; {planner.reason}" if books.fault else planner.reason)
                self._announce(True)
            await self._wait_news()

    async def _watch_leases(self, leases: Leases) -> None:
        """Ask every peer of the run what it does, a few times within each lease; a slow one keeps nobody waiting."""
        async with asyncio.TaskGroup() as group:
            asking: dict[PeerId, asyncio.Task[None]] = {}
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(leases.seconds / 6, 0.5)):
                        await self._suspected.wait()
                self._suspected.clear()
                asking = {peer: task for peer, task in asking.items() if not task.done()}
                for peer, endpoint in self._peers(leases).items():
                    if peer not in asking:
                        asking[peer] = group.create_task(self._ask(leases, peer, endpoint))

    async def _ask_all(self, leases: Leases) -> Iterable[PeerId]:
        """Once, and wait for all answers; who was asked."""
        peers = self._peers(leases)
        async with asyncio.TaskGroup() as group:
            for peer, endpoint in peers.items():
                group.create_task(self._ask(leases, peer, endpoint))
        return peers

    def _peers(self, leases: Leases) -> dict[PeerId, Endpoint]:
        """The live experts, trainers and mirrors of the run; the others are forgotten."""
        snapshot = self._context.directory.snapshot()
        run = self._context.run.id
        mirrors = {p for p, e in snapshot.peers.items() if "mirror" in e.record.roles and e.record.run == run}
        peers = snapshot.experts.keys() | snapshot.trainers.keys() | mirrors
        leases.forget(set(peers))
        return {peer: at for peer in peers if (at := address(snapshot, peer)) is not None}

    async def _ask(self, leases: Leases, peer: PeerId, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        remote = Remote(self._context.transport, endpoint, leases.left(peer, loop.time()))
        try:
            status = await remote.status()
            if status.peer != peer:
                raise GoneError(f"{endpoint} is the address of {short(status.peer)} now")
            loss = leases.answered(peer, status, loop.time())
            if leases.is_back(peer):
                self._events.record(Kind.BACK, f"{short(peer)} is back", Subject(peer=peer))
        except DistqatError as error:
            # Whoever asks is alive: a daemon that is too busy to answer itself has lost nobody.
            # Nor is a daemon lost that has begun anew meanwhile, and answers elsewhere.
            has_moved = address(self._context.directory.snapshot(), peer) not in (None, endpoint)
            is_judged = peer != self._context.me and not has_moved
            loss = leases.failed(peer, error, loop.time()) if is_judged else None
        if loss is not None:
            log.warning("lost %s: %s", short(peer), loss.reason)
            self._events.record(Kind.LOST, f"lost {short(peer)}: {loss.reason}", Subject(peer=peer, how=loss.how))
            self._context.lose(peer, endpoint, loss.reason)
            self._context.telemetry.record("loss", {"lost": peer, "reason": loss.reason}, {})
            await self._spread(leases, peer, endpoint, loss.reason)

    async def _spread(self, leases: Leases, peer: PeerId, endpoint: Endpoint, reason: str) -> None:
        """Tell the others of a loss, so that none waits any longer; whoever does not hear it finds out by itself."""
        config, others = self._config, {name: status.endpoint for name, status in leases.statuses.items()}
        assert config is not None

        async def tell(other: Endpoint) -> None:
            try:
                await Remote(self._context.transport, other, SPREAD_SECONDS).lost(config.id, peer, endpoint, reason)
            except DistqatError as error:
                log.debug("%s was not told that %s is lost: %s", other, short(peer), error)

        async with asyncio.TaskGroup() as group:
            for name, other in others.items():
                if name != self._context.me:
                    group.create_task(tell(other))

    def _announce(self, planning: bool) -> None:
        context = self._context
        context.directory.announce(ClientRecord(context.endpoint, planning, str(self._reason)))

    def _run_status(self) -> RunStatus | None:
        config, ledger, leases = self._config, self._ledger, self._leases
        if config is None or leases is None:
            return None
        stages = tuple(f"{config.model.name}/{index}" for index in range(config.model.stages))
        if ledger is None:
            return RunStatus(stages=stages)
        return RunStatus(
            committed=ledger.committed,
            budget=ledger.budget,
            open=ledger.open,
            stages=stages,
            finished=self._planner is not None and self._planner.is_finished,
            doubled=ledger.doubled,
            skipped=ledger.skipped,
            lost=ledger.lost,
            pipelines=self._planner.pipelines() if self._planner is not None else (),
            losses=tuple(leases.history),
            leases=leases.ages(asyncio.get_running_loop().time()),
        )
