"""One run under faults: warm up, measure, hurt and heal by the schedule, let it settle, measure again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rich.console import Console

from distqat.cli.chaos.card import Spans
from distqat.cli.chaos.crew import HEAD, Crew
from distqat.cli.chaos.schedule import Fault, Kind, choose
from distqat.cli.chaos.watch import Mark, Span, Watch
from distqat.data.metrics import METRICS
from distqat.errors import DistqatError, RemoteError
from distqat.roles.status import PeerStatus

LOOK_SECONDS = 0.05
"""Between two looks at the head: recoveries are known to within about this."""

HEAR_SECONDS = 1.0
"""Between two looks at everybody, and the longest wait for an answer."""

ANSWER_SECONDS = 5.0
"""For an answer of the head, which is busy when all others ask it too."""

WARM_SECONDS = 300.0
"""Until all pipelines train and their first rounds are over."""

RETURN_SECONDS = 240.0
"""For a daemon that was started again to take its role: torch takes its time on a machine that is busy training."""

HOLD_SECONDS = 15.0
"""For a victim that is back to hold a stage again, with a seat or warm; not every spare is told to follow one."""

SETTLE_SECONDS = 120.0
"""After the last fault: until all siblings have agreed on a further round."""


@dataclass(frozen=True)
class Course:
    """What is to happen."""

    faults: tuple[Fault, ...]
    seconds: float
    """For which the faults last; the run takes longer if they do."""
    measured: float
    """Seconds without faults that are measured before, and again after."""
    first_rounds: int
    """Rounds that belong to the beginning, and are over before anything is measured."""
    patience: float
    """Seconds after which a fault that has not recovered ends the run."""


class Storm:
    """Watches a crew, and hurts it; made by `open_storm`."""

    def __init__(self, crew: Crew, watch: Watch, course: Course, console: Console, group: asyncio.TaskGroup) -> None:
        self.spans = Spans()
        self.broke_off = ""  # Why the run ended early.
        self.evaluations: dict[str, tuple[float, str, float]] = {}  # By pipeline: when, metric, value; the last.
        self._crew = crew
        self._watch = watch
        self._course = course
        self._console = console
        self._group = group  # Owns those who watch, and those who heal.
        self._routes: dict[str, int] = {}  # Stage by name, of everybody on a route that trains.
        self._peers: dict[str, str] = {}  # Who answers as which daemon.
        self._serial = 0  # Of the last metric line of the head.
        self._began = asyncio.get_running_loop().time()

    def __repr__(self) -> str:
        return f"<Storm {self._watch!r} {self._crew!r}>"

    async def rage(self) -> None:
        """The whole course; what it comes to is in the attributes and the watch."""
        try:
            await self._warm_up()
            before = await self._measure()
            self._say(f"{before.rate:.0f} samples/s without faults")
            begin = self._mark()
            self.spans = Spans(before)
            try:
                await self._hurt()
            finally:
                self.spans = Spans(before, Span.between(begin, self._mark()))
            await self._settle()
            self.spans = Spans(before, self.spans.during, await self._measure())
        except DistqatError as error:
            self.broke_off = error.reason
            self._say(f"broken off: {error.reason}")

    async def watch_head(self) -> None:
        """Look at the head again and again; runs until cancelled."""
        while True:
            status = await self._crew.status(HEAD, ANSWER_SECONDS)
            names = dict(self._crew.names)
            self._watch.look(self._now(), status, names)
            lines = [line for role in status.roles for line in role.pipelines] if status is not None else []
            self._routes = {
                names[seat.endpoint]: seat.stage
                for line in lines
                if line.phase == "training"
                for seat in line.route
                if seat.endpoint in names
            }
            await asyncio.sleep(LOOK_SECONDS)

    async def watch_all(self) -> None:
        """Hear everybody's digests, and the head's evaluations; runs until cancelled."""
        while True:
            names = [name for name in self._crew.experts() if name not in self._crew.down]
            await asyncio.gather(*(self._hear_digests(name) for name in names))
            await self._hear_evaluations()
            await asyncio.sleep(HEAR_SECONDS)

    async def _hear_digests(self, name: str) -> None:
        status = await self._crew.status(name, HEAR_SECONDS)
        # An answer from before it was killed comes too late.
        if status is not None and name not in self._crew.down:
            self._peers[name] = status.peer
            self._watch.digests.add(status)

    async def _hear_evaluations(self) -> None:
        for line in await self._crew.metrics(self._serial, ANSWER_SECONDS):
            self._serial = line.serial
            for name in METRICS.values():
                if line.kind == "evaluation" and name in line.values:
                    self.evaluations[line.labels["pipeline"]] = (self._now(), name, line.values[name])

    async def _warm_up(self) -> None:
        """Wait until the beginning of the run is over."""
        first, digests = self._course.first_rounds, self._watch.digests

        def is_warm() -> bool:
            stages = set(self._routes.values())
            return self._watch.is_whole and all(digests.agreed_after(first - 1, stage) for stage in stages)

        await self._until(is_warm, WARM_SECONDS, "the pipelines to train and their first rounds to be over")

    async def _measure(self) -> Span:
        """The rate of a while in which nothing is done."""
        begin = self._mark()
        await self._until_time(begin.now + self._course.measured)
        return Span.between(begin, self._mark())

    async def _hurt(self) -> None:
        """One fault after the other, each when it is due and the one before is over."""
        began = self._now()
        for fault in self._course.faults:
            await self._until_time(began + fault.at)
            await self._until(self._is_ready, RETURN_SECONDS, f"all to be back before fault {fault.number}")
            await self._inject(fault)
            await self._until(lambda: self._watch.is_whole, self._course.patience, f"fault {fault.number} to recover")
            wound = self._watch.wounds[-1]
            self._say(f"recovered from {wound.label} of {wound.victim} in {wound.recovery:.2f} s")
        await self._until_time(began + self._course.seconds)
        await self._until(lambda: self._watch.is_over, RETURN_SECONDS, "the last victim to be back")

    def _is_ready(self) -> bool:
        """Everybody is back and everything trains, so each stage has siblings that hold its state."""
        return self._watch.is_whole and self._watch.is_over and bool(self._routes)

    async def _inject(self, fault: Fault) -> None:
        spares = [name for name in self._crew.experts() if name not in self._routes]
        victim = choose(fault, list(self._routes), spares, HEAD)
        assert victim is not None
        stage = self._routes.get(victim)
        where = f" on stage {stage}" if stage is not None else " without a stage"
        self._say(f"fault {fault.number}: {'silent ' * fault.is_silent}{fault.kind} of {victim}{where}")
        crew, now = self._crew, self._now()
        if fault.kind is Kind.STOP:
            crew.stop(victim)
        elif fault.kind is Kind.CUT:
            crew.cut(victim, fault.is_silent)
        else:
            await crew.kill(victim)
            self._watch.digests.bury(self._peers.get(victim, ""))
        self._watch.struck(now, fault, victim, stage)
        self._group.create_task(self._heal(fault, victim))

    async def _heal(self, fault: Fault, victim: str) -> None:
        """Undo it after its time; a daemon that does not come back breaks the run off."""
        await asyncio.sleep(fault.seconds)
        try:
            if fault.kind is Kind.STOP:
                self._crew.resume(victim)
            elif fault.kind is Kind.CUT:
                await self._crew.heal(victim)
            else:
                await self._crew.revive(victim)
            await self._until_back(victim)
        except RemoteError as error:
            self.broke_off = error.reason
            return
        self._watch.healed(self._now(), fault.number)

    async def _until_back(self, victim: str) -> None:
        """Until it holds its role, and an expert a stage if it gets one. Raises RemoteError if it does not in time."""
        role, end = "client" if victim == HEAD else "expert", self._now() + RETURN_SECONDS
        while not _holds(await self._crew.status(victim, HEAR_SECONDS), role):
            if self._now() > end:
                raise RemoteError(f"daemon {victim} has not taken the role {role} after {RETURN_SECONDS:.0f} s")
            await asyncio.sleep(LOOK_SECONDS)
        await self._until_of_use(victim)

    async def _until_of_use(self, victim: str) -> None:
        """Until it could train at once, or a while has passed."""
        end = self._now() + HOLD_SECONDS
        while self._now() < end:
            if _is_of_use(await self._crew.status(victim, HEAR_SECONDS)):
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _settle(self) -> None:
        """Everybody is back and trains, and all siblings agree on a round that came after all this."""
        digests = self._watch.digests
        last = {stage: digests.last(stage) for stage in set(self._routes.values())}
        since = self._now()

        def is_settled() -> bool:
            has_agreed = bool(last) and all(digests.agreed_after(number, stage) for stage, number in last.items())
            is_evaluated = any(when > since for when, _, _ in self.evaluations.values())
            return self._watch.is_whole and has_agreed and is_evaluated

        await self._until(is_settled, SETTLE_SECONDS, "the siblings to agree on a further round, and an evaluation")

    async def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Look again and again. Raises RemoteError after so many seconds, or if a daemon ends by itself."""
        end = self._now() + seconds
        while not condition():
            self._crew.check()
            if self.broke_off:
                raise RemoteError(self.broke_off)
            if self._now() > end:
                raise RemoteError(f"waited {seconds:.0f} s in vain for {what}")
            await asyncio.sleep(LOOK_SECONDS)

    async def _until_time(self, end: float) -> None:
        await self._until(lambda: self._now() >= end, math.inf, "")

    def _now(self) -> float:
        """Seconds since this began."""
        return asyncio.get_running_loop().time() - self._began

    def _mark(self) -> Mark:
        return self._watch.mark(self._now())

    def _say(self, text: str) -> None:
        self._console.print(f"{self._now():7.1f} s  {text}", highlight=False)


@asynccontextmanager
async def open_storm(crew: Crew, watch: Watch, course: Course, console: Console) -> AsyncIterator[Storm]:
    """A storm whose crew is watched until the end."""
    async with asyncio.TaskGroup() as group:
        storm = Storm(crew, watch, course, console, group)
        watching = [group.create_task(storm.watch_head()), group.create_task(storm.watch_all())]
        try:
            yield storm
        finally:
            for task in watching:
                task.cancel()


def _holds(status: PeerStatus | None, name: str) -> bool:
    """Whether a daemon has taken that role; while it takes it there are no facts yet."""
    role = status.role(name) if status is not None else None
    return role is not None and (role.expert is not None or role.run is not None)


def _is_of_use(status: PeerStatus | None) -> bool:
    """Whether an expert could train at once: it has a seat that is ready, or holds a stage warm. Others always can."""
    role = status.role("expert") if status is not None else None
    expert = role.expert if role is not None else None
    return status is not None and (role is None or (expert is not None and (expert.ready or expert.warm)))


def last_evaluation(evaluations: Mapping[str, tuple[float, str, float]]) -> tuple[str, float]:
    """Metric and value that the swarm came to last; no metric and nan if nothing was evaluated."""
    _, metric, value = max(evaluations.values(), default=(0.0, "", math.nan))
    return metric, value
