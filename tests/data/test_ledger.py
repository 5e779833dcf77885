from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.data.claims import Claim, LedgerSnapshot
from distqat.data.ledger import Ledger
from distqat.errors import StateError

PIPELINES = ("ada", "bob", "cyd")


@dataclass
class Oracle:
    """The naive books: for every position how often it was committed and who holds it."""

    budget: int
    commits: list[int] = field(init=False)
    holders: list[int | None] = field(init=False)

    def __post_init__(self) -> None:
        self.commits = [0] * self.budget
        self.holders = [None] * self.budget

    def claimed(self, claim: Claim) -> None:
        for position in range(claim.begin, claim.end):
            assert self.holders[position] is None
            assert self.commits[position] == 0
            self.holders[position] = claim.id

    def returned(self, claim: Claim) -> None:
        for position in range(claim.begin, claim.end):
            if self.holders[position] == claim.id:
                self.holders[position] = None

    def committed(self, claim: Claim) -> None:
        for position in range(claim.begin, claim.end):
            self.commits[position] += 1
        self.returned(claim)

    def check(self, ledger: Ledger) -> None:
        assert ledger.committed == sum(count > 0 for count in self.commits)
        assert ledger.doubled == sum(max(0, count - 1) for count in self.commits)
        assert ledger.open == sum(holder is not None for holder in self.holders)
        assert ledger.lost == 0
        assert ledger.finished == all(self.commits)


ACTIONS = st.tuples(
    st.sampled_from(["claim", "claim", "again", "commit", "commit", "return", "release", "late", "restart"]),
    st.sampled_from(PIPELINES),
    st.integers(1, 9),
)


@settings(deadline=None)
@given(st.integers(0, 60), st.lists(ACTIONS, max_size=60), st.booleans())
def test_every_position_is_committed_exactly_once(
    budget: int, actions: list[tuple[str, str, int]], has_late_commits: bool
) -> None:
    ledger, oracle = Ledger(budget), Oracle(budget)
    serials = dict.fromkeys(PIPELINES, 0)
    held: dict[int, Claim] = {}
    released: list[Claim] = []
    for action, pipeline, number in actions:
        mine = [claim for claim in held.values() if claim.pipeline == pipeline]
        if action == "claim":
            claim = ledger.claim(pipeline, number, serials[pipeline] + 1)
            if claim is not None:
                assert claim.samples <= number
                serials[pipeline] += 1
                held[claim.id] = claim
                oracle.claimed(claim)
        elif action == "again":
            repeated = ledger.claim(pipeline, number, serials[pipeline])
            assert repeated is None or repeated in mine
        elif action == "restart":
            ledger = Ledger.restore(ledger.snapshot())
        elif action == "release":
            assert ledger.release(pipeline) == sum(claim.samples for claim in mine)
            for claim in mine:
                oracle.returned(held.pop(claim.id))
            released += mine
        elif action == "late":
            if has_late_commits and released:
                claim = released.pop(number % len(released))
                assert not ledger.resolve(claim.id, True)
                oracle.committed(claim)
        elif mine:
            claim = held.pop(mine[number % len(mine)].id)
            for _ in range(2):
                assert ledger.resolve(claim.id, action == "commit")
            assert not ledger.resolve(claim.id, action != "commit")
            (oracle.committed if action == "commit" else oracle.returned)(claim)
        oracle.check(ledger)
    for claim in held.values():
        ledger.resolve(claim.id, True)
        oracle.committed(claim)
    serial = max(serials.values())
    while (rest := ledger.claim("last", 7, serial + 1)) is not None:
        serial += 1
        assert ledger.resolve(rest.id, True)
        oracle.claimed(rest)
        oracle.committed(rest)
    oracle.check(ledger)
    assert ledger.finished
    assert has_late_commits or oracle.commits == [1] * budget


def test_given_back_positions_go_first() -> None:
    ledger = Ledger(100)
    first, second = ledger.claim("ada", 10, 1), ledger.claim("bob", 10, 1)
    assert first is not None
    assert second is not None
    assert (second.begin, second.end) == (10, 20)
    assert ledger.resolve(first.id, committed=False)
    again = ledger.claim("bob", 4, 2)
    assert again is not None
    assert (again.begin, again.end) == (0, 4)
    rest = ledger.claim("bob", 10, 3)
    assert rest is not None
    assert (rest.begin, rest.end) == (4, 10)  # What is left of it, not across the positions of others.


def test_the_last_claim_may_be_smaller_and_the_budget_is_never_exceeded() -> None:
    ledger = Ledger(10)
    assert ledger.claim("ada", 7, 1) == Claim(1, "ada", 0, 7)
    assert ledger.claim("ada", 7, 2) == Claim(2, "ada", 7, 10)
    assert ledger.claim("ada", 7, 3) is None


def test_a_late_copy_of_a_request_gets_nothing_new() -> None:
    ledger = Ledger(100)
    first = ledger.claim("ada", 10, 1)
    assert first is not None
    assert ledger.claim("ada", 10, 1) == first
    ledger.resolve(first.id, committed=True)
    assert ledger.claim("ada", 10, 1) is None
    assert ledger.claim("ada", 10, 5) == Claim(2, "ada", 10, 20)
    assert ledger.claim("ada", 10, 4) is None
    assert (ledger.open, ledger.committed, ledger.last_serial("ada")) == (10, 10, 5)


def test_a_resolution_must_agree_with_the_one_before() -> None:
    ledger = Ledger(100)
    claim = ledger.claim("ada", 10, 1)
    assert claim is not None
    assert ledger.resolve(claim.id, committed=True)
    assert ledger.resolve(claim.id, committed=True)
    assert not ledger.resolve(claim.id, committed=False)
    assert not ledger.resolve(99, committed=True)
    assert ledger.committed == 10


def test_a_released_claim_that_was_committed_after_all_is_not_trained_on_again() -> None:
    ledger = Ledger(20)
    claim = ledger.claim("ada", 10, 1)
    assert claim is not None
    assert ledger.release("ada") == 10
    assert not ledger.resolve(claim.id, committed=True)
    assert ledger.claim("bob", 20, 1) == Claim(2, "bob", 10, 20)
    assert (ledger.committed, ledger.doubled, ledger.lost) == (10, 0, 0)


def test_a_double_commit_is_counted() -> None:
    ledger = Ledger(20)
    claim = ledger.claim("ada", 10, 1)
    assert claim is not None
    ledger.release("ada")
    other = ledger.claim("bob", 4, 1)
    assert other == Claim(2, "bob", 0, 4)
    assert not ledger.resolve(claim.id, committed=True)
    assert ledger.resolve(other.id, committed=True)
    assert (ledger.committed, ledger.doubled) == (10, 4)


def test_a_lost_position_is_counted() -> None:
    ledger = Ledger(20)
    ledger.claim("ada", 10, 1)
    ledger._open.clear()  # A fault in the bookkeeping, as it must not happen.
    assert ledger.lost == 10


def test_answers_say_why_there_is_nothing() -> None:
    ledger = Ledger(10)
    claim = ledger.answer("ada", 10, 1).claim
    assert claim is not None
    waiting = ledger.answer("bob", 10, 1)
    assert waiting.reason == "waiting: the last 10 samples of the run are with pipeline ada"
    assert (waiting.claim, waiting.is_finished, waiting.serial) == (None, False, 0)
    ledger.resolve(claim.id, committed=True)
    assert ledger.answer("bob", 10, 1).is_finished
    stale = Ledger(10)
    stale.claim("ada", 1, 7)
    answer = stale.answer("ada", 1, 3)
    assert (answer.claim, answer.serial) == (None, 7)
    assert answer.reason == "request 3 of pipeline ada is out of date"


def test_a_snapshot_that_contradicts_itself_is_refused() -> None:
    snapshot = Ledger(10).snapshot()
    with pytest.raises(StateError, match="samples 5 to 15 of a budget of 10"):
        Ledger.restore(replace(snapshot, open=(Claim(1, "ada", 5, 15),)))


def test_a_restored_ledger_never_gives_an_id_a_second_meaning() -> None:
    ledger = Ledger(100)
    snapshot = ledger.snapshot()
    forgotten = ledger.claim("ada", 10, 1)
    assert forgotten is not None
    restored = Ledger.restore(snapshot)
    again = restored.claim("bob", 10, 1)
    assert again is not None
    assert not restored.resolve(forgotten.id, committed=True)
    assert (restored.committed, restored.open) == (0, 10)


def test_the_books_of_a_long_run_stay_small() -> None:
    ledger = Ledger(10_000)
    for serial in range(1, 1001):
        claim = ledger.claim(PIPELINES[serial % 3], 10, serial)
        assert claim is not None
        ledger.resolve(claim.id, committed=True)
    snapshot = ledger.snapshot()
    assert len(snapshot.committed) == len(snapshot.claims_committed) == 1


def test_repr() -> None:
    ledger = Ledger(100)
    ledger.claim("ada", 8, 1)
    assert repr(ledger) == "<Ledger 0/100 committed, 8 open>"


def test_a_pipeline_that_ended_at_a_claim_has_committed_those_up_to_it() -> None:
    ledger = Ledger(100)
    ada = [ledger.claim("ada", 10, serial) for serial in range(1, 5)]
    bob = ledger.claim("bob", 10, 1)
    assert bob is not None
    first, second, third, fourth = [claim for claim in ada if claim is not None]
    assert ledger.resolve(first.id, True)
    assert ledger.close("ada", third.id) == (20, 10)
    assert (ledger.committed, ledger.open, ledger.doubled, ledger.lost) == (30, 10, 0, 0)
    # Its trainer comes back and says what it knows: that is so already, and what went back stays with others.
    assert ledger.resolve(second.id, True)
    assert ledger.resolve(fourth.id, False)
    assert ledger.close("ada", third.id) == (0, 0)
    assert ledger.holders == {"bob"}


def test_what_is_given_up_is_counted_apart_and_the_claims_after_it_move_up_by_a_step() -> None:
    ledger = Ledger(40)
    claims = [ledger.claim("ada", 10, serial, step=serial) for serial in range(1, 5)]
    first, second, third, fourth = [claim for claim in claims if claim is not None]
    assert ledger.refuse(first.id)
    assert ledger.refuse(first.id)
    assert (ledger.skipped, ledger.lost, ledger.open) == (10, 0, 30)
    assert [claim.step for claim in ledger.snapshot().open] == [1, 2, 3]
    for claim in (second, third, fourth):
        assert ledger.resolve(claim.id, True)
    assert ledger.finished
    assert ledger.claim("bob", 10, 1) is None
    restored = Ledger.restore(LedgerSnapshot.from_json(ledger.snapshot().to_json()))
    assert (restored.skipped, restored.committed, restored.lost, restored.finished) == (10, 30, 0, True)
    # A claim that is committed, or of which nothing is known, cannot be refused.
    assert not ledger.refuse(second.id)
    assert not ledger.refuse(1 << 30)


def test_a_repeated_request_may_be_for_another_step() -> None:
    ledger = Ledger(40)
    first = ledger.claim("ada", 10, 1, step=2)
    assert first is not None
    again = ledger.claim("ada", 10, 1, step=1)
    assert again == replace(first, step=1)
    assert ledger.snapshot().open == (again,)


def test_books_that_are_a_moment_old_are_completed_by_the_trainers() -> None:
    ledger = Ledger(100)
    old = [ledger.claim("ada", 10, serial, step=serial) for serial in (1, 2)]
    copied = ledger.snapshot()
    new = [ledger.claim("ada", 10, serial, step=serial) for serial in (3, 4)]
    booked, held = [claim for claim in (*old, new[0]) if claim], [claim for claim in new[1:] if claim]
    for claim in booked:
        assert ledger.resolve(claim.id, True)

    late = Ledger.restore(copied)
    assert (late.committed, late.open) == (0, 20)
    assert late.complete(held, booked) == 4
    assert (late.committed, late.open, late.lost, late.doubled) == (30, 10, 0, 0)
    # What it has heard already is no news, and nobody gets what the pipeline holds.
    assert late.complete(held, booked) == 0
    other = late.claim("bob", 100, 1)
    assert other is not None
    assert (other.begin, other.end) == (40, 100)
    assert late.resolve(held[0].id, True)
    assert late.resolve(other.id, True)
    assert (late.finished, late.doubled) == (True, 0)


def test_claims_that_cannot_be_are_not_taken_into_the_books() -> None:
    ledger = Ledger(100)
    mine = ledger.claim("ada", 10, 1, step=1)
    assert mine is not None
    assert ledger.resolve(mine.id, True)
    strange = [Claim(7, "bob", 5, 15), Claim(8, "bob", 90, 110), Claim(9, "bob", 30, 30), Claim(10, "bob", 40, 30)]
    assert ledger.complete(strange, strange) == 0
    assert (ledger.open, ledger.committed, ledger.lost, ledger.doubled) == (0, 10, 0, 0)
