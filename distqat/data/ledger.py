"""Who trains on which positions of the run's sample order, each position once. Pure.

A position is free, in an open claim, or committed. What is claimed is either committed or given back; given-back
positions lie below fresh ones and go first. Every count that the ledger shows is taken from these intervals, so a
fault in the bookkeeping would show as lost or doubled samples.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from distqat.data.intervals import Interval, IntervalSet
from distqat.errors import StateError

ID_GAP = 1 << 20
"""Claim ids that a restored ledger leaves out; more than are handed out between two writes of the books."""


@dataclass(frozen=True)
class Claim:
    """Positions [begin, end) that belong to a pipeline; `id` counts from 1."""

    id: int
    pipeline: str
    begin: int
    end: int

    @property
    def samples(self) -> int:
        """How many positions it holds."""
        return self.end - self.begin


@dataclass(frozen=True)
class ClaimAnswer:
    """What a request for samples came to; without a claim, `reason` says why."""

    claim: Claim | None
    is_finished: bool = False
    reason: str = ""
    serial: int = 0


@dataclass(frozen=True)
class LedgerSnapshot:
    """Everything a ledger knows, as it is kept on disk or handed to another client."""

    budget: int
    num_claims: int
    doubled: int
    committed: tuple[Interval, ...]
    claims_committed: tuple[Interval, ...]
    claims_given_back: tuple[Interval, ...]
    open: tuple[Claim, ...]
    released: tuple[Claim, ...]
    last: tuple[tuple[str, int, int], ...]

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LedgerSnapshot:
        """What `to_json` wrote. Raises StateError."""
        try:
            tree = json.loads(text)
            claims = {name: tuple(Claim(**claim) for claim in tree.pop(name)) for name in ("open", "released")}
            lists = {name: tuple(map(tuple, value)) for name, value in tree.items() if isinstance(value, list)}
            return cls(**{**tree, **lists, **claims})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"they are no ledger: {error}") from None


class Ledger:
    """The books of one run over a budget of positions, counted from 0."""

    def __init__(self, budget: int, last_claim: int = 0) -> None:
        """Books over so many positions; claims are numbered from `last_claim` + 1 on."""
        self.budget = budget
        self.doubled = 0  # Commits of a position beyond its first.
        self._num_claims = last_claim  # The id of the latest claim.
        self._free = IntervalSet([(0, budget)])  # Never claimed, or given back.
        self._committed = IntervalSet()
        self._open: dict[int, Claim] = {}
        self._released: dict[int, Claim] = {}  # Taken from their pipelines; a late commit is still counted.
        self._claims_committed = IntervalSet()  # Ids of claims by what became of them.
        self._claims_given_back = IntervalSet()
        self._last: dict[str, tuple[int, int]] = {}  # By pipeline: highest serial that got a claim, and the claim's id.

    def __repr__(self) -> str:
        return f"<Ledger {self.committed}/{self.budget} committed, {self.open} open>"

    @property
    def committed(self) -> int:
        """Positions that are in committed parameters, each counted once."""
        return self._committed.count

    @property
    def open(self) -> int:
        """Positions in open claims."""
        return sum(claim.samples for claim in self._open.values())

    @property
    def finished(self) -> bool:
        """True when every position of the budget is committed."""
        return self.committed == self.budget

    @property
    def lost(self) -> int:
        """Positions that are neither committed nor open nor free: nobody will ever train on them."""
        known = IntervalSet(self._committed)
        for begin, end in self._free:
            known.add(begin, end)
        for claim in self._open.values():
            known.add(claim.begin, claim.end)
        return self.budget - known.count

    @property
    def holders(self) -> set[str]:
        """Pipelines that have open claims."""
        return {claim.pipeline for claim in self._open.values()}

    def last_serial(self, pipeline: str) -> int:
        """Highest serial of the pipeline that got a claim; 0 before the first."""
        return self._last.get(pipeline, (0, 0))[0]

    def claim(self, pipeline: str, samples: int, serial: int) -> Claim | None:
        """At most `samples` positions for the pipeline; None when none are free or the request is out of date.

        A repeated request gets the same claim for as long as that is open. An older one, or one whose claim has been
        resolved since, is a late copy of a request that nobody waits for any more, and gets nothing.
        """
        last_serial, last_id = self._last.get(pipeline, (0, 0))
        if serial == last_serial:
            return self._open.get(last_id)
        if serial < last_serial or samples < 1 or not self._free:
            return None
        begin, end = self._free.first()
        end = min(end, begin + samples)
        self._free.remove(begin, end)
        self._num_claims += 1
        claim = Claim(self._num_claims, pipeline, begin, end)
        self._open[claim.id] = claim
        self._last[pipeline] = (serial, claim.id)
        return claim

    def answer(self, pipeline: str, samples: int, serial: int) -> ClaimAnswer:
        """`claim`, and in its place the reason why there is none."""
        claim = self.claim(pipeline, samples, serial)
        last = self.last_serial(pipeline)
        if claim is not None:
            return ClaimAnswer(claim, serial=last)
        if self.finished:
            return ClaimAnswer(None, is_finished=True, reason="the run's budget is committed", serial=last)
        if serial <= last:
            return ClaimAnswer(None, reason=f"request {serial} of pipeline {pipeline} is out of date", serial=last)
        holders = ", ".join(sorted(self.holders)) or "none"
        reason = f"waiting: the last {self.open} samples of the run are with pipeline {holders}"
        return ClaimAnswer(None, reason=reason, serial=last)

    def resolve(self, claim_id: int, committed: bool) -> bool:
        """The claim's samples are in committed parameters, or go back. True when that was, or already is, so.

        A claim that was released meanwhile is not accepted; if its pipeline had committed after all, that is counted,
        and what nobody has taken over yet is not handed out again.
        """
        claim = self._open.pop(claim_id, None)
        if claim is None:
            late = self._released.pop(claim_id, None) if committed else None
            if late is not None:
                self._commit(late)
                return False
            return claim_id in (self._claims_committed if committed else self._claims_given_back)
        if committed:
            self._claims_committed.add(claim_id, claim_id + 1)
            self._commit(claim)
        else:
            self._give_back(claim)
        return True

    def release(self, pipeline: str) -> int:
        """Give back all open claims of the pipeline; how many positions that were."""
        claims = [claim for claim in self._open.values() if claim.pipeline == pipeline]
        for claim in claims:
            del self._open[claim.id]
            self._released[claim.id] = claim
            self._give_back(claim)
        return sum(claim.samples for claim in claims)

    def _commit(self, claim: Claim) -> None:
        self.doubled += self._committed.overlap(claim.begin, claim.end)
        self._committed.add(claim.begin, claim.end)
        self._free.remove(claim.begin, claim.end)

    def _give_back(self, claim: Claim) -> None:
        self._claims_given_back.add(claim.id, claim.id + 1)
        # What a late commit has put into the parameters meanwhile is not trained on again.
        self._free.add(claim.begin, claim.end)
        for begin, end in list(self._committed):
            self._free.remove(begin, end)

    def snapshot(self) -> LedgerSnapshot:
        """All of it; free positions follow from the rest."""
        return LedgerSnapshot(
            self.budget,
            self._num_claims,
            self.doubled,
            tuple(self._committed),
            tuple(self._claims_committed),
            tuple(self._claims_given_back),
            tuple(self._open.values()),
            tuple(self._released.values()),
            tuple((pipeline, serial, claim) for pipeline, (serial, claim) in self._last.items()),
        )

    @classmethod
    def restore(cls, snapshot: LedgerSnapshot) -> Ledger:
        """A ledger that goes on where the snapshot was taken. Raises StateError when it contradicts itself."""
        ledger = cls(snapshot.budget)
        ledger.doubled = snapshot.doubled
        # Claims handed out since the snapshot are unknown; their ids must not come to mean other samples.
        ledger._num_claims = snapshot.num_claims + ID_GAP
        ledger._committed = IntervalSet(snapshot.committed)
        ledger._claims_committed = IntervalSet(snapshot.claims_committed)
        ledger._claims_given_back = IntervalSet(snapshot.claims_given_back)
        ledger._open = {claim.id: claim for claim in snapshot.open}
        ledger._released = {claim.id: claim for claim in snapshot.released}
        ledger._last = {pipeline: (serial, claim) for pipeline, serial, claim in snapshot.last}
        taken = [*snapshot.committed, *((claim.begin, claim.end) for claim in snapshot.open)]
        for begin, end in taken:
            if not 0 <= begin < end <= snapshot.budget:
                raise StateError(f"the ledger speaks of samples {begin} to {end} of a budget of {snapshot.budget}")
            ledger._free.remove(begin, end)
        return ledger
