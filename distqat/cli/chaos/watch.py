"""What the swarm says of itself while faults come: who works, since when, on how much, and with which digests. Pure.

head's status, 20 times a second > look > recoveries, committed samples, peers that were there
every daemon's status            > heard > digests of siblings, by stage and round
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from distqat.cli.chaos.schedule import Fault, Kind
from distqat.ids import Endpoint
from distqat.roles.status import PeerStatus, PipelineStatus


@dataclass(frozen=True)
class Wound:
    """A fault that was injected."""

    fault: Fault
    victim: str
    stage: int | None
    """Of the victim when it was hit; None: it had no stage."""
    at: float
    healed: float = math.nan
    """When the victim was there again; nan until then."""
    recovered: float = math.nan
    """When all pipelines had committed a step without it, or with it after it was healed; nan until then."""

    @property
    def label(self) -> str:
        """Under which its recovery is counted."""
        spare = replace(self.fault, hits_spare=self.stage is None and self.fault.kind is not Kind.KILL_HEAD)
        return spare.label

    @property
    def recovery(self) -> float:
        """Seconds; nan if it has not recovered."""
        return self.recovered - self.at

    @property
    def is_over(self) -> bool:
        """Whether the victim is back, and everything trains."""
        return math.isfinite(self.healed) and math.isfinite(self.recovered)


@dataclass(frozen=True)
class Mark:
    """How far the run was at one moment."""

    now: float
    committed: int
    available: float
    """Seconds so far, each weighed by the share of the needed peers that were there."""


@dataclass(frozen=True)
class Span:
    """What was done between two marks."""

    seconds: float = 0.0
    available: float = 0.0
    samples: int = 0

    @classmethod
    def between(cls, begin: Mark, end: Mark) -> Span:
        """From one mark to a later one."""
        return cls(end.now - begin.now, end.available - begin.available, end.committed - begin.committed)

    @property
    def rate(self) -> float:
        """Samples per second; nan of an empty span."""
        return self.samples / self.seconds if self.seconds > 0 else math.nan


@dataclass
class _Working:
    """A pipeline as it was first seen to train on its present route."""

    epoch: int
    step: int
    has_stepped: bool = False


@dataclass
class Digests:
    """What siblings said of the rounds that they committed, the last and those before."""

    by_round: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)  # (stage, rounds) > peer > digest.
    died: int = 0
    """Rounds that a group of one had committed and nobody else had told of when it was killed."""
    _lone: set[tuple[int, int, str]] = field(default_factory=set)  # (stage, rounds, peer) of groups of one.

    def add(self, peer: PeerStatus) -> None:
        """One daemon's account."""
        for expert in (role.expert for role in peer.roles):
            if expert is None or not expert.seated:
                continue
            # A group of one has nobody to send anything to.
            self._lone |= {
                (expert.stage, receipt.round + 1, peer.peer)
                for receipt in expert.receipts
                if receipt.contributors == (peer.peer,) and not receipt.bytes
            }
            # A receipt has the number of its round, counted from 0, and the digest of the state after it.
            said = {receipt.round + 1: receipt.digest for receipt in expert.receipts} | {expert.round: expert.digest}
            for number, digest in said.items():
                # Nothing is committed yet at 0; a stage that is still empty has no digest.
                if number > 0 and digest:
                    self.by_round.setdefault((expert.stage, number), {})[peer.peer] = digest

    def bury(self, peer: str) -> None:
        """It is killed. What it had committed as a group of one, and nobody else has told of, is no result of the run:
        those who live may have another one."""
        alone = [key for key, said in self.by_round.items() if said.keys() == {peer} and (*key, peer) in self._lone]
        for key in alone:
            del self.by_round[key]
        self.died += len(alone)

    @property
    def compared(self) -> int:
        """Rounds of a stage of which at least two siblings said a digest."""
        return sum(len(said) > 1 for said in self.by_round.values())

    @property
    def unequal(self) -> tuple[str, ...]:
        """Those whose digests differ, for people."""
        differing = (key for key, said in sorted(self.by_round.items()) if len(set(said.values())) > 1)
        return tuple(f"stage {stage} round {number}" for stage, number in differing)

    def agreed_after(self, number: int, stage: int) -> bool:
        """Whether at least two siblings of the stage said equal digests of a round later than that."""
        later = (said for (of, at), said in self.by_round.items() if of == stage and at > number)
        return any(len(said) > 1 and len(set(said.values())) == 1 for said in later)

    def last(self, stage: int) -> int:
        """The latest round of the stage that anybody spoke of; 0: none."""
        return max((number for of, number in self.by_round if of == stage), default=0)


class Watch:
    """Follows one swarm. Times are seconds of any clock, handed in."""

    def __init__(self, pipelines: int, needed: int) -> None:
        self.digests = Digests()
        self.wounds: list[Wound] = []
        self.committed = 0  # As the head said last.
        self.lost = self.doubled = self.skipped = self.budget = 0
        self._pipelines = pipelines  # That train when all is well.
        self._needed = needed  # Experts of these.
        self._experts = 0  # Daemons that may be experts.
        self._down: set[str] = set()
        self._working: dict[str, _Working] = {}
        self._replays: dict[tuple[int, str], int] = {}  # By life of the head and pipeline.
        self._available = 0.0
        self._seen = math.nan  # When it was looked last.

    def __repr__(self) -> str:
        return (
            f"<Watch {self.working}/{self._pipelines} pipelines, {self.committed} samples, {len(self.wounds)} faults>"
        )

    @property
    def working(self) -> int:
        """Pipelines that train and have committed a step since they were last seen to begin."""
        return sum(line.has_stepped for line in self._working.values())

    @property
    def is_whole(self) -> bool:
        """Whether as many pipelines work as are meant to, and every fault so far has recovered."""
        return self.working >= self._pipelines and all(math.isfinite(wound.recovered) for wound in self.wounds)

    @property
    def is_over(self) -> bool:
        """Whether every fault so far is over: its victim is back, and everything trains."""
        return all(wound.is_over for wound in self.wounds)

    @property
    def replays(self) -> int:
        """How often a route opened with batches that an earlier one had left open."""
        return sum(self._replays.values())

    def staffed(self, experts: int) -> None:
        """So many daemons may be experts."""
        self._experts = experts

    def mark(self, now: float) -> Mark:
        """How far the run is."""
        self._pass(now)
        return Mark(now, self.committed, self._available)

    def look(self, now: float, head: PeerStatus | None, names: Mapping[Endpoint, str]) -> None:
        """What the head says, and which daemon answers where; None: the head does not answer."""
        self._pass(now)
        run = next((role.run for role in head.roles if role.run is not None), None) if head is not None else None
        if run is not None and run.budget:
            self.committed = max(self.committed, run.committed)
            self.lost, self.doubled, self.skipped, self.budget = run.lost, run.doubled, run.skipped, run.budget
        lines = [line for role in head.roles for line in role.pipelines] if head is not None else []
        lives = sum(wound.fault.kind is Kind.KILL_HEAD for wound in self.wounds)
        self._replays |= {(lives, line.pipeline): line.replayed for line in lines}
        self._count(lines, names)
        if self.working >= self._pipelines:
            self.wounds = [w if math.isfinite(w.recovered) else replace(w, recovered=now) for w in self.wounds]

    def struck(self, now: float, fault: Fault, victim: str, stage: int | None) -> None:
        """That daemon is dead, stopped or cut from now on."""
        self._pass(now)
        self.wounds.append(Wound(fault, victim, stage, now))
        self._down.add(victim)
        # What was seen before says nothing: every pipeline has to commit a further step.
        self._working = {}

    def healed(self, now: float, number: int) -> None:
        """The victim of that fault is there again."""
        self._pass(now)
        self.wounds = [replace(w, healed=now) if w.fault.number == number else w for w in self.wounds]
        self._down -= {wound.victim for wound in self.wounds if wound.fault.number == number}

    def _count(self, lines: Sequence[PipelineStatus], names: Mapping[Endpoint, str]) -> None:
        """Which pipelines work. A step counts if its route was seen to train before, without anybody who is down."""
        is_headless = any(w.fault.kind is Kind.KILL_HEAD and not math.isfinite(w.healed) for w in self.wounds)
        sound: dict[str, _Working] = {}
        for line in lines:
            on_route = {names.get(seat.endpoint, "") for seat in line.route}
            if line.phase != "training" or is_headless or on_route & self._down or "" in on_route:
                continue
            known = self._working.get(line.pipeline)
            if known is None or known.epoch != line.epoch:
                known = _Working(line.epoch, line.step)
            known.has_stepped = known.has_stepped or line.step > known.step
            sound[line.pipeline] = known
        self._working = sound

    def _pass(self, now: float) -> None:
        """Time goes on with those who are there."""
        if math.isfinite(self._seen):
            there = self._experts - len(self._down)
            self._available += (now - self._seen) * min(1.0, there / self._needed)
        self._seen = now


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed; nan without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
