"""The side that answers: takes a route for one expert's stage, and displaces the route before.

    check > displace the older route > host.opened > open the rest of the route > reach the common step > work

Whatever goes wrong is told to whoever stands above, as a Fault that names the peer, and harms nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from distqat.errors import ComputeError, DistqatError, RefusedError, RpcError, StaleError, WrongRunError
from distqat.ids import PeerId, PipelineId, RunId, short
from distqat.model.agreement import Verdict
from distqat.model.device import Priority
from distqat.pipeline.below import Below, open_below
from distqat.pipeline.hop import DOWNWARD, Hop
from distqat.pipeline.hop_codecs import codecs_of, names_of
from distqat.pipeline.host import Host, Post, unwatched
from distqat.pipeline.messages import SERVICE
from distqat.pipeline.pace import Pace
from distqat.pipeline.route import HopError, Limits, first_error
from distqat.pipeline.standing import LastStep, Standing, step_to_pass_on
from distqat.pipeline.words import Fault, Open, Opened
from distqat.pipeline.worker import Worker
from distqat.rpc.transport import Caller, Service, Stream, Transport
from distqat.timeline import Timelines
from distqat.wire.compression import Compression

log = logging.getLogger(__name__)

GOODBYE = 2.0
"""Seconds in which a Fault must be on its way; whoever does not read it in that time is told nothing."""


@dataclass(eq=False)
class Tenure:
    """The time of one route at this expert."""

    opening: Open
    displaced: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    worker: Worker | None = None

    def __str__(self) -> str:
        return f"pipeline {self.opening.pipeline} epoch {self.opening.epoch}"


class PipelineService:
    """Serves the routes of one expert, one at a time; the newest wins."""

    def __init__(
        self,
        host: Host,
        transport: Transport,
        me: PeerId,
        run: RunId,
        limits: Limits,
        timelines: Timelines | None = None,
    ) -> None:
        self.limits = limits
        self.timelines = timelines if timelines is not None else unwatched()
        self.standing = Standing()
        self.on_fault: Callable[[ComputeError], None] = lambda fault: None  # Told when the stage's own code has failed.
        self._host = host
        self._transport = transport
        self._me = me
        self._run = run
        self._turn = asyncio.Lock()  # Held while one route displaces another.
        self._tenure: Tenure | None = None  # The route that has the stage now; None between routes.

    def __repr__(self) -> str:
        return f"<PipelineService {self._tenure or 'no route'}>"

    @property
    def opening(self) -> Open | None:
        """How the present route was opened; None between routes."""
        return self._tenure.opening if self._tenure is not None else None

    @property
    def worker(self) -> Worker | None:
        """Who works on the present route; None while it opens and between routes."""
        return self._tenure.worker if self._tenure is not None else None

    def service(self) -> Service:
        """To be added to a server."""
        return Service(SERVICE, streams={"Hop": self.handle})

    async def fence(self, pipeline: PipelineId, step: int, verdict: Verdict) -> LastStep:
        """Commit no further step of this pipeline, whoever asks for it; the last one. Raises RefusedError while its
        route is still ending here. `step` is the last that any stage has committed, 0 while that is not known."""
        async with self._turn:
            self.standing.fence(pipeline)
            if self._tenure is not None and self._tenure.opening.pipeline == pipeline:
                await self._displace()
        close = partial(self.standing.close, self._host.stage, pipeline, step, verdict)
        return await self._host.device.run(close, Priority.OTHER)

    async def handle(self, stream: Stream, caller: Caller) -> None:
        """One hop, from its first message to its end."""
        above = Hop(stream, DOWNWARD, self.limits.max_message, Compression(self.limits.wire.compression))
        fault: DistqatError | None = None
        try:
            await self._serve(above, caller)
        except* DistqatError as errors:
            fault = first_error(errors)
        if isinstance(fault, ComputeError):
            self.on_fault(fault)
        if fault is not None:
            await self._say(above, fault)

    async def _serve(self, above: Hop, caller: Caller) -> None:
        opening = await self._opening(above, caller)
        async with self._take(opening) as tenure, asyncio.TaskGroup() as group:
            watch = group.create_task(_until_displaced(tenure))
            await self._work(tenure, above)
            watch.cancel()

    async def _opening(self, above: Hop, caller: Caller) -> Open:
        try:
            async with asyncio.timeout(self.limits.open):
                received = await above.receive()
        except TimeoutError:
            raise RefusedError(f"{caller.address} opened a hop and said nothing") from None
        # The rules of a hop let nothing but an Open come first.
        if received is None or not isinstance(received[0], Open):
            raise RefusedError(f"{caller.address} opened a hop and ended it")
        self._check(received[0])
        return received[0]

    def _check(self, opening: Open) -> None:
        stage = self._host.stage
        if opening.run != self._run:
            raise WrongRunError(f"this expert works for run {self._run}, not for {opening.run}")
        seat, last = opening.seats[0], opening.seats[-1]
        if seat.peer != self._me:
            raise RefusedError(f"the route wants {seat} here, which is another peer")
        if seat.stage != stage.index or last.stage != stage.num_stages - 1:
            raise RefusedError(
                f"the route wants stages {seat.stage} to {last.stage} from here on; "
                f"this expert holds stage {stage.index} of {stage.num_stages}"
            )
        names = names_of(stage.name, stage.num_stages)
        agreed = codecs_of(self.limits.wire, names, stage.index, self.limits.has_offsets)
        if opening.codecs != agreed:
            above = "the trainer" if seat.stage == 0 else f"stage {seat.stage - 1}"
            raise RefusedError(
                f"{above} on {short(opening.sender)} opens its hop with {opening.codecs}, "
                f"stage {seat.stage} on {short(self._me)} takes {agreed}; give both the same config"
            )

    @asynccontextmanager
    async def _take(self, opening: Open) -> AsyncIterator[Tenure]:
        """Have the stage for this route, after the one before has ended."""
        tenure = Tenure(opening)
        async with self._turn:
            self.standing.note_epoch(opening.pipeline, opening.epoch)
            await self._displace()
            self._tenure = tenure
        reason = "the route was cut off"
        try:
            await self._host.opened(opening)
            try:
                yield tenure
                reason = "the trainer has closed the route"
            except BaseException as error:
                found = first_error(error)
                reason = found.reason if found is not None else reason
                raise
            finally:
                await self._host.closed(reason)
        finally:
            tenure.ended.set()
            if self._tenure is tenure:
                self._tenure = None

    async def _displace(self) -> None:
        if self._tenure is None:
            return
        self._tenure.displaced.set()
        try:
            async with asyncio.timeout(self.limits.open):
                await self._tenure.ended.wait()
        except TimeoutError:
            raise RefusedError(f"{self._tenure} is still ending here") from None

    async def _work(self, tenure: Tenure, above: Hop) -> None:
        """Open the rest of the route, agree on the step, and work until the route ends."""
        opening, stage, limits = tenure.opening, self._host.stage, self.limits
        held = await self._host.device.run(partial(self.standing.held, stage, opening.pipeline), Priority.OTHER)
        step = step_to_pass_on(opening.step, held)
        # Who has applied the step knows better than a trainer that may have been told nothing.
        verdict = self.standing.verdict if held.version == step else opening.verdict
        pace = Pace(stage.num_stages, stage.index, limits.max_in_flight)
        timeline = self.timelines.of(opening.pipeline, stage.name, stage.index)
        post = Post(self._host, self.standing, limits, pace, timeline)
        if len(opening.seats) == 1:
            await self._work_from(tenure, post, above, None, Opened(step, verdict))
            return
        names = names_of(stage.name, stage.num_stages)
        codecs = codecs_of(limits.wire, names, stage.index + 1, limits.has_offsets)
        rest = replace(opening, step=step, verdict=verdict, seats=opening.seats[1:], sender=self._me, codecs=codecs)
        async with open_below(self._transport, rest, limits, pace) as below:
            await self._work_from(tenure, post, above, below, Opened(below.step, below.verdict))

    async def _work_from(self, tenure: Tenure, post: Post, above: Hop, below: Below | None, opened: Opened) -> None:
        stage, pipeline = self._host.stage, tenure.opening.pipeline
        reach = partial(self.standing.reach, stage, pipeline, opened.step, opened.verdict)
        await self._host.device.run(reach, Priority.OTHER)
        log.info("%s is open at %s, step %d", tenure, stage.name, opened.step)
        await above.send(opened)
        tenure.worker = Worker(post, above, below)
        await tenure.worker.run()

    async def _say(self, above: Hop, error: DistqatError) -> None:
        """Tell whoever stands above, who passes it on to the trainer."""
        peer, kind = (error.peer, error.kind) if isinstance(error, HopError) else (self._me, type(error).__name__)
        log.info("a route broke: %s: %s", kind, error.reason)
        try:
            async with asyncio.timeout(GOODBYE):
                await above.send(Fault(peer, kind, error.reason))
        except (RpcError, TimeoutError) as unheard:
            log.debug("nobody heard of it: %s", unheard or "nobody reads")


async def _until_displaced(tenure: Tenure) -> None:
    await tenure.displaced.wait()
    raise StaleError(f"{tenure} was displaced by a newer route")
