"""What an expert does for one open route: compute in the schedule's order, pass down, answer up.

A few small tasks: one reader (`arrivals.py`) and one writer to each side, one that beats, and the one that computes.
Decoding happens in the readers and encoding in the writers, so both go on while the device computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from distqat.aio import Mailbox
from distqat.ids import MicrobatchId
from distqat.pipeline.arrivals import Arrivals, Parcel
from distqat.pipeline.below import Below
from distqat.pipeline.computing import Answer, Computing
from distqat.pipeline.freight import Freight
from distqat.pipeline.hop import Hop
from distqat.pipeline.hop_codecs import GRADIENT, HIDDEN, TIED, codecs_of, names_of
from distqat.pipeline.host import Post
from distqat.pipeline.pace import PaceState
from distqat.pipeline.schedule import Agree, Apply, Backward, Forward, Statistics, Work
from distqat.pipeline.words import Busy, Commit, Committed, Gradient, Outcome, Settle


class Worker:
    """One stage on one open route."""

    def __init__(self, post: Post, above: Hop, below: Below | None) -> None:
        stage, limits = post.stage, post.limits
        names = names_of(stage.name, stage.num_stages)
        device = post.host.device.torch_device
        room = 2 * limits.max_in_flight + 4
        self._post = post
        self._stage = stage
        self._above = above
        self._below = below  # None in the last stage.
        self._up: Mailbox[Parcel | None] = Mailbox(f"answers of {stage.name}", room)  # None: no more will come.
        self._down: Mailbox[Parcel | None] = Mailbox(f"outputs of {stage.name}", room)
        codecs = codecs_of(limits.wire, names, stage.index, limits.has_offsets)
        self._upward = Freight("above", above, codecs, post.timeline, post.pace, device)
        self._downward: Freight | None = None  # None in the last stage.
        if below is not None:
            codecs = codecs_of(limits.wire, names, stage.index + 1, limits.has_offsets)
            self._downward = Freight("below", below, codecs, post.timeline, post.pace, device)
        self._arrivals = Arrivals(post, self._up)
        self._schedule = self._arrivals.schedule
        self._computing = Computing(post)
        self._square_norms: tuple[float, ...] = ()  # In stage 0: of the step that is through and not committed.
        self._began = 0.0  # When the first forward of the present step began.
        self._busy_since: float | None = None  # When the present piece of work began; None while there is none.

    def __repr__(self) -> str:
        return f"<Worker {self._stage.name} {self._schedule}>"

    def statistics(self) -> Statistics:
        """How things stand: microbatches waiting, in flight now and most, and how many may be."""
        return self._schedule.statistics()

    def pace(self) -> PaceState:
        """What is known of the route's speed, which the bound on those in flight follows."""
        return self._post.pace.statistics()

    async def run(self) -> None:
        """Work until the trainer closes the route. Raises HopError or what happened here, as a group."""
        self._post.timeline.restart()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._arrivals.read_above(self._above, self._upward))
            group.create_task(_write(self._up, self._upward))
            beats = group.create_task(self._beat())
            if self._below is None or self._downward is None:
                await self._compute()
            else:
                writer = group.create_task(_write(self._down, self._downward))
                reader = group.create_task(self._arrivals.read_below(self._below, self._downward))
                watch = group.create_task(self._below.wait_dead())
                pings = group.create_task(self._below.keep_measuring(self._post.limits.ping))
                await self._compute()
                await self._close_below(self._below, writer, reader)
                watch.cancel()
                pings.cancel()
            beats.cancel()
            await self._up.put(None)

    async def _close_below(self, below: Below, writer: asyncio.Task[None], reader: asyncio.Task[None]) -> None:
        seconds = self._post.limits.open
        try:
            async with asyncio.timeout(seconds):
                await self._down.put(None)
                await asyncio.wait({writer})
                await below.finish()
                await asyncio.wait({reader})
        except TimeoutError:
            raise below.blame("DeadlineError", f"did not close within {seconds:.1f} s") from None

    async def _compute(self) -> None:
        with self._at_work():
            await self._report()
        while (work := await self._arrivals.next()) is not None:
            with self._at_work():
                await self._do(work)
            self._post.host.progressed()

    async def _do(self, work: Work) -> None:
        match work:
            case Forward():
                await self._forward(work)
            case Backward(id):
                answer = await self._computing.backward(*self._arrivals.gradient(id))
                self._schedule.done(work)
                await self._answer(id, answer)
            case Apply(step):
                await self._apply(work, step)
            case Agree(serial):
                await self._settle(work, serial)

    async def _forward(self, work: Forward) -> None:
        if work.id.index == 0:
            await self._post.host.begin(work.train)
            self._began = asyncio.get_running_loop().time()
        message, hidden, targets = self._arrivals.microbatch(work)
        if self._below is None:
            answer = await self._computing.loss(message, hidden, targets)
            self._schedule.done(work)
            if work.train:
                await self._answer(work.id, answer)
            else:
                await self._up.put((Outcome(message.step, message.index, answer.sums), {}))
        else:
            lent = await self._computing.lend()
            output = await self._computing.forward(message, hidden)
            self._schedule.done(work)
            self._below.watch.owe()
            await self._down.put((message, {HIDDEN: output, **targets, **lent}))

    async def _answer(self, id: MicrobatchId, answer: Answer) -> None:
        norms = answer.square_norms
        if self._stage.index == 0:
            self._square_norms, norms = norms, ()
        named = {} if answer.gradient is None else {GRADIENT: answer.gradient}
        if answer.tied is not None and self._stage.index:
            named[TIED] = answer.tied
        await self._up.put((Gradient(id.step, id.index, square_norms=norms, sums=answer.sums), named))

    async def _apply(self, work: Apply, step: int) -> None:
        size = self._post.standing.size(step)
        assert size is not None
        ordered: bool | None = None
        if self._stage.index == 0:
            verdict = await self._computing.conclude(step, self._square_norms)
        else:
            commit = self._arrivals.commit(step)
            verdict, ordered = commit.verdict, commit.round
            await self._computing.apply(step, verdict)
        decided = self._post.host.orders_round(ordered)
        if self._below is not None:
            order = Commit(step, size.samples, verdict, decided if ordered is None else ordered)
            await self._down.put((order, {}))
        if self._stage.index == 0:
            await self._up.put((Committed(step, verdict, asyncio.get_running_loop().time() - self._began), {}))
        links = self._upward.link | (self._downward.link if self._downward is not None else {})
        self._post.timeline.committed(step, links, self._stage.statistics().most_stashed_bytes)
        await self._report()
        self._schedule.done(work)

    async def _report(self) -> None:
        """Tell the host of applied steps, also of one that was applied when a route broke or opened."""
        owed = self._post.standing.owed
        while owed:
            # A step that was applied late is one of its own pipeline, not of the one that has a route now.
            at, samples = owed.popleft()
            await self._post.host.committed(at, samples)

    async def _settle(self, work: Agree, serial: int) -> None:
        if self._below is not None:
            self._arrivals.settling(serial)
            self._below.watch.owe()
            await self._down.put((Settle(serial), {}))
        await self._post.host.settle()
        self._schedule.done(work)
        await self._arrivals.settled(serial)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Within, one piece of work is done: a microbatch on the device, a commit, an outer round."""
        self._busy_since = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._busy_since = None

    async def _beat(self) -> None:
        """Let those above know that a long piece of work, or a long message on a slow link, is no dead silence."""
        loop = asyncio.get_running_loop()
        pause, most = self._post.limits.stall / 3, self._post.limits.settle
        while True:
            await asyncio.sleep(pause)
            now = loop.time()
            is_working = self._busy_since is not None and now - self._busy_since < most
            touched = max(self._above.touched, self._below.touched if self._below is not None else 0.0)
            if is_working or now - touched <= pause:
                await self._up.put((Busy(self._stage.index), {}))


async def _write(parcels: Mailbox[Parcel | None], freight: Freight) -> None:
    """Encode and send what is put into a mailbox, in its order, until None."""
    while (parcel := await parcels.get()) is not None:
        await freight.ship(*parcel)
