"""Who trains on which positions of the run's sample order, each position once. Pure.

A position is free, in an open claim, or committed. What is claimed is either committed or given back; given-back
positions lie below fresh ones and go first. Every count that the ledger shows is taken from these intervals, so a
fault in the bookkeeping would show as lost or doubled samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from distqat.data.claims import Claim, ClaimAnswer, LedgerSnapshot
from distqat.data.intervals import IntervalSet
from distqat.data.known_steps import KnownSteps
from distqat.data.steplog import MOST_STEPS, Entry, StepLog
from distqat.errors import StateError

ID_GAP = 1 << 20
"""Claim ids that a restored ledger leaves out; more than are handed out between two writes of the books."""


class Ledger:
    """The books of one run over a budget of positions, counted from 0."""

    def __init__(self, budget: int, last_claim: int = 0) -> None:
        """Books over so many positions; claims are numbered from `last_claim` + 1 on."""
        self.budget = budget
        self.doubled = 0  # Commits of a position beyond its first.
        self._num_claims = last_claim  # The id of the latest claim.
        self._free = IntervalSet([(0, budget)])  # Never claimed, or given back.
        self._committed = IntervalSet()
        self._skipped = IntervalSet()  # Given up, because training on them fails.
        self._open: dict[int, Claim] = {}
        self._released: dict[int, Claim] = {}  # Taken from their pipelines; a late commit is still counted.
        self._claims_committed = IntervalSet()  # Ids of claims by what became of them.
        self._claims_given_back = IntervalSet()
        self._last: dict[str, tuple[int, int]] = {}  # By pipeline: highest serial that got a claim, and the claim's id.
        self._steps = StepLog()  # Of what is committed.
        self._known = KnownSteps()  # Of what is committed, also what the log of steps has forgotten.

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
    def skipped(self) -> int:
        """Positions that were given up, because training on them fails."""
        return self._skipped.count

    @property
    def finished(self) -> bool:
        """True when every position of the budget is committed, but for those that were given up."""
        return self.committed + self.skipped == self.budget

    @property
    def lost(self) -> int:
        """Positions that are neither committed, given up, open nor free: nobody will ever train on them."""
        known = IntervalSet(self._committed)
        for begin, end in [*self._free, *self._skipped]:
            known.add(begin, end)
        for claim in self._open.values():
            known.add(claim.begin, claim.end)
        return self.budget - known.count

    @property
    def holders(self) -> set[str]:
        """Pipelines that have open claims."""
        return {claim.pipeline for claim in self._open.values()}

    @property
    def is_new(self) -> bool:
        """Whether nothing has ever been claimed from these books."""
        return not self._last and not self._committed

    def covers(self, steps: Mapping[str, int]) -> bool:
        """Whether they know which samples were of these steps of the pipelines, and of all before: committed or on
        their way."""
        known = self._all_known()
        return all(known.reaches(pipeline, step) for pipeline, step in steps.items())

    def lacks(self, pipeline: str, booked: Collection[Claim]) -> bool:
        """Whether steps of the pipeline are missing between what stands in the books and the first of these."""
        first = min((claim.step for claim in booked if claim.step), default=0)
        return not self._all_known().reaches(pipeline, first - 1)

    def _all_known(self) -> KnownSteps:
        known = KnownSteps(self._known)
        for claim in [*self._open.values(), *self._released.values()]:
            if claim.step:
                known.add(claim.pipeline, claim.step, claim.step + 1)
        return known

    def last_serial(self, pipeline: str) -> int:
        """Highest serial of the pipeline that got a claim; 0 before the first."""
        return self._last.get(pipeline, (0, 0))[0]

    def claim(self, pipeline: str, samples: int, serial: int, step: int = 0) -> Claim | None:
        """At most `samples` positions for that step of the pipeline; None when none are free or the request is out of
        date.

        A repeated request gets the same claim for as long as that is open. An older one, or one whose claim has been
        resolved since, is a late copy of a request that nobody waits for any more, and gets nothing.
        """
        last_serial, last_id = self._last.get(pipeline, (0, 0))
        if serial == last_serial:
            return self._stepped(last_id, step)
        if serial < last_serial or samples < 1 or not self._free:
            return None
        begin, end = self._free.first()
        end = min(end, begin + samples)
        self._free.remove(begin, end)
        self._num_claims += 1
        claim = Claim(self._num_claims, pipeline, begin, end, step)
        self._open[claim.id] = claim
        self._last[pipeline] = (serial, claim.id)
        return claim

    def answer(self, pipeline: str, samples: int, serial: int, step: int = 0) -> ClaimAnswer:
        """`claim`, and in its place the reason why there is none."""
        claim = self.claim(pipeline, samples, serial, step)
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

    def complete(self, held: Collection[Claim], booked: Collection[Claim]) -> int:
        """Books that may be old learn from the trainers of all pipelines what came after; how many entries that were.

        `held` is what they have claimed and have not heard to be booked, `booked` what was, as far back as they
        remember. That counts first. An open claim of the books whose samples another has by now was given back.
        """
        entries = 0
        for claim in booked:
            if claim.id in self._open or claim.id in self._released:
                self.resolve(claim.id, True)
                entries += 1
            elif self._make_room(claim, [other for other in self._open.values() if other.meets(claim)]):
                self._claims_committed.add(claim.id, claim.id + 1)
                self._commit(claim)
                entries += 1
        for claim in held:
            older = [other for other in self._open.values() if other.meets(claim) and other.id < claim.id]
            if self._make_room(claim, older):
                self._free.remove(claim.begin, claim.end)
                self._open[claim.id] = claim
                entries += 1
        counts = Counter(claim.pipeline for claim in booked)
        for pipeline in [name for name, count in counts.items() if count >= MOST_STEPS]:
            # Nobody remembers more than so many: there may be a gap before them.
            self._known.add(pipeline, 0, 1)
        return entries

    def _make_room(self, claim: Claim, stale: Collection[Claim]) -> bool:
        """Whether the books know nothing of that claim, and nobody else has its positions once the stale claims, which
        were given back, are; then they are."""
        known = (self._open, self._claims_committed, self._claims_given_back)
        if any(claim.id in ids for ids in known) or claim.samples < 1:
            return False
        room = IntervalSet(self._free)
        for other in stale:
            room.add(other.begin, other.end)
        if room.overlap(claim.begin, claim.end) != claim.samples:
            return False
        self._take_back(stale)
        self._num_claims = max(self._num_claims, claim.id)
        return True

    def release(self, pipeline: str) -> int:
        """Give back all open claims of the pipeline; how many positions that were."""
        claims = [claim for claim in self._open.values() if claim.pipeline == pipeline]
        self._take_back(claims)
        return sum(claim.samples for claim in claims)

    def _take_back(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            del self._open[claim.id]
            self._released[claim.id] = claim
            self._give_back(claim)

    def refuse(self, claim_id: int) -> bool:
        """Training on the claim's samples fails: they are skipped. True when that was, or already is, so.

        The claims that the pipeline got after it are for one step less.
        """
        claim = self._open.pop(claim_id, None)
        if claim is None:
            return claim_id in self._claims_given_back
        self._claims_given_back.add(claim_id, claim_id + 1)
        self._skipped.add(claim.begin, claim.end)
        for later in list(self._open.values()):
            if later.pipeline == claim.pipeline and later.id > claim_id:
                self._stepped(later.id, max(0, later.step - 1))
        return True

    def _stepped(self, claim_id: int, step: int) -> Claim | None:
        """The claim, if it is open, for that step."""
        claim = self._open.get(claim_id)
        if claim is not None:
            claim = self._open[claim_id] = replace(claim, step=step)
        return claim

    def close(self, pipeline: str, last_claim: int) -> tuple[int, int]:
        """The pipeline has committed its claims up to that one and commits no more: book those, give the others back.

        How many positions each were; claims that are resolved already are in neither.
        """
        booked = 0
        for claim in [claim for claim in self._open.values() if claim.pipeline == pipeline and claim.id <= last_claim]:
            self.resolve(claim.id, True)
            booked += claim.samples
        return booked, self.release(pipeline)

    def _commit(self, claim: Claim) -> None:
        self.doubled += self._committed.overlap(claim.begin, claim.end)
        self._committed.add(claim.begin, claim.end)
        self._free.remove(claim.begin, claim.end)
        if claim.step:
            self._known.add(claim.pipeline, claim.step, claim.step + 1)
            self._steps.add(claim.pipeline, claim.step, claim.begin, claim.end)

    def forget(self, steps: Mapping[str, int] | None) -> None:
        """Nobody will go back to before these steps of the pipelines: every checkpoint has them. None: nor to any."""
        if steps is None:
            self._steps.keep([])
        else:
            self._steps.forget(steps)

    def roll_back(self, steps: Mapping[str, int]) -> int:
        """Go back to the moment at which exactly these steps of the pipelines, and all before them, were committed; of
        other pipelines nothing that is remembered was. All claims end; how many positions are free again.

        What was on its way counts too: a step may be in a checkpoint before its trainer has booked it.
        """
        before = self.committed
        claims = [*self._open.values(), *self._released.values()]
        under_way: list[Entry] = [(c.pipeline, c.step, c.begin, c.end) for c in claims if c.step]
        known = [*self._steps, *under_way]
        kept = [entry for entry in known if entry[1] <= steps.get(entry[0], 0)]
        for _, _, begin, end in self._steps:
            self._committed.remove(begin, end)
        for _, _, begin, end in kept:
            self._committed.add(begin, end)
        for claim in claims:
            self._claims_given_back.add(claim.id, claim.id + 1)
        self._steps.keep(kept)
        self._known.cut(steps)
        for pipeline, step, _, _ in kept:
            self._known.add(pipeline, step, step + 1)
        self._open.clear()
        self._released.clear()
        # Whoever still speaks of a claim from before speaks of another life of the run.
        self._num_claims += ID_GAP
        self._free = IntervalSet([(0, self.budget)])
        for begin, end in [*self._committed, *self._skipped]:
            self._free.remove(begin, end)
        return before - self.committed

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
            tuple(self._skipped),
            self._steps.to_text(),
            tuple(self._known),
        )

    def take(self, snapshot: LedgerSnapshot) -> None:
        """Be the ledger of that snapshot from now on. Raises StateError if it is over another budget."""
        if snapshot.budget != self.budget:
            raise StateError(f"the books are over {snapshot.budget} samples, not {self.budget}")
        num_claims = self._num_claims
        vars(self).update(vars(Ledger.restore(snapshot)))
        self._num_claims = max(self._num_claims, num_claims)

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
        ledger._skipped = IntervalSet(snapshot.skipped)
        ledger._steps = StepLog.of(snapshot.steps)
        ledger._known = KnownSteps(snapshot.known)
        taken = [*snapshot.committed, *snapshot.skipped, *((claim.begin, claim.end) for claim in snapshot.open)]
        for begin, end in taken:
            if not 0 <= begin < end <= snapshot.budget:
                raise StateError(f"the ledger speaks of samples {begin} to {end} of a budget of {snapshot.budget}")
            ledger._free.remove(begin, end)
        return ledger
