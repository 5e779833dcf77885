"""The books go back to an earlier moment of the run: what was trained after it is trained again, exactly once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.data.claims import Claim, LedgerSnapshot
from distqat.data.ledger import Ledger
from distqat.data.steplog import StepLog
from distqat.errors import StateError

PIPELINES = ("ada", "bob", "cyd")

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "commit", "commit", "return", "restart"]),
        st.sampled_from(PIPELINES),
        st.integers(1, 9),
    ),
    max_size=60,
)


@dataclass
class Trainers:
    """Pipelines that claim for one step after the other, and commit in that order."""

    ledger: Ledger
    held: dict[str, list[Claim]] = field(default_factory=lambda: {name: [] for name in PIPELINES})
    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PIPELINES, 0))  # Booked.
    serials: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PIPELINES, 0))
    samples: dict[tuple[str, int], set[int]] = field(default_factory=dict)  # By pipeline and step.
    trained: dict[str, int] = field(default_factory=dict)  # Steps that a checkpoint has: nobody gives them back.

    def claim(self, name: str, most: int) -> None:
        step = self.steps[name] + len(self.held[name]) + 1
        self.serials[name] += 1
        claim = self.ledger.claim(name, most, self.serials[name], step)
        if claim is not None:
            self.held[name].append(claim)
            self.samples[name, step] = set(range(claim.begin, claim.end))

    def commit(self, name: str) -> None:
        if self.held[name]:
            claim = self.held[name].pop(0)
            assert self.ledger.resolve(claim.id, True)
            self.steps[name] = claim.step

    def give_back(self, name: str) -> None:
        while self.held[name] and self.held[name][-1].step > self.trained.get(name, 0):
            self.ledger.resolve(self.held[name].pop().id, False)


@settings(deadline=None)
@given(st.integers(0, 80), ACTIONS, ACTIONS, st.booleans())
def test_what_was_trained_after_the_cut_is_trained_again_exactly_once(
    budget: int, first: list[tuple[str, str, int]], second: list[tuple[str, str, int]], is_booked: bool
) -> None:
    trainers = Trainers(Ledger(budget))
    run(trainers, first)
    cut = dict(trainers.steps)
    if not is_booked:
        # The checkpoint has a step that its trainer has not booked yet.
        cut = {name: trainers.held[name][0].step if trainers.held[name] else step for name, step in cut.items()}
    trainers.trained = cut
    samples = {key: set(found) for key, found in trainers.samples.items() if key[1] <= cut[key[0]]}
    run(trainers, second)
    ledger = Ledger.restore(LedgerSnapshot.from_json(trainers.ledger.snapshot().to_json()))
    before = ledger.committed
    freed = ledger.roll_back(cut)
    assert ledger.committed == before - freed
    assert committed(ledger) == {position for found in samples.values() for position in found}
    assert (ledger.open, ledger.lost, ledger.doubled) == (0, 0, 0)
    serial = 1
    while (claim := ledger.claim("new", 7, serial, serial)) is not None:
        assert ledger.resolve(claim.id, True)
        serial += 1
    assert ledger.finished
    assert (ledger.lost, ledger.doubled) == (0, 0)


def committed(ledger: Ledger) -> set[int]:
    return {position for begin, end in ledger.snapshot().committed for position in range(begin, end)}


def run(trainers: Trainers, actions: list[tuple[str, str, int]]) -> None:
    for action, name, number in actions:
        if action == "claim":
            trainers.claim(name, number)
        elif action == "commit":
            trainers.commit(name)
        elif action == "return":
            trainers.give_back(name)
        elif action == "restart":
            trainers.ledger = Ledger.restore(LedgerSnapshot.from_json(trainers.ledger.snapshot().to_json()))


def test_of_a_pipeline_without_a_cut_nothing_is_left() -> None:
    ledger = Ledger(30)
    for serial, name in enumerate(("ada", "bob", "ada"), start=1):
        claim = ledger.claim(name, 10, serial, serial)
        assert claim is not None
        assert ledger.resolve(claim.id, True)
    assert ledger.finished
    assert ledger.roll_back({"ada": 1}) == 20
    assert ledger.snapshot().committed == ((0, 10),)


def test_what_every_checkpoint_has_is_committed_for_good() -> None:
    ledger = Ledger(30)
    for step in (1, 2, 3):
        claim = ledger.claim("ada", 10, step, step)
        assert claim is not None
        ledger.resolve(claim.id, True)
    ledger.forget({"ada": 2})
    assert ledger.roll_back({}) == 10
    assert ledger.snapshot().committed == ((0, 20),)


def test_a_claim_from_before_means_nothing_afterwards() -> None:
    ledger = Ledger(30)
    claim = ledger.claim("ada", 10, 1, 1)
    assert claim is not None
    ledger.roll_back({})
    assert not ledger.resolve(claim.id, True)
    assert ledger.committed == 0
    again = ledger.claim("bob", 10, 1, 1)
    assert again is not None
    assert (again.begin, again.end) == (0, 10)


def test_books_without_steps_are_read() -> None:
    text = Ledger(10).snapshot().to_json().replace(', "steps": ""', "")
    assert "steps" not in text
    assert Ledger.restore(LedgerSnapshot.from_json(text)).budget == 10


def test_a_step_log_is_what_was_written() -> None:
    log = StepLog(most=2)
    for step in (1, 2, 3):
        log.add("p1-ab", step, 10 * step, 10 * step + 10)
    assert list(StepLog.of(log.to_text())) == [("p1-ab", 2, 20, 30), ("p1-ab", 3, 30, 40)]
    with pytest.raises(StateError, match="a step 'p1 x'"):
        StepLog.of("p1 x")


def test_books_know_of_which_steps_they_know() -> None:
    ledger = Ledger(100)
    assert ledger.is_new
    for step in (1, 2, 3):
        claim = ledger.claim("p", 10, step, step)
        assert claim is not None
        if step < 3:
            ledger.resolve(claim.id, True)
    # The third is on its way: it may be in a checkpoint already.
    assert ledger.covers({"p": 3})
    assert not ledger.covers({"p": 4})
    assert not ledger.covers({"p": 1, "q": 1})
    # Also when the steps themselves are forgotten, and in another process.
    ledger.forget({"p": 2})
    other = Ledger.restore(LedgerSnapshot.from_json(ledger.snapshot().to_json()))
    assert other.covers({"p": 3})
    other.roll_back({"p": 2})
    assert other.covers({"p": 2})
    assert not other.covers({"p": 3})


def test_new_books_become_those_of_others() -> None:
    ledger, other = Ledger(100, last_claim=5), Ledger(100)
    claim = other.claim("p", 10, 1, 1)
    assert claim is not None
    other.resolve(claim.id, True)
    ledger.take(other.snapshot())
    assert not ledger.is_new
    assert (ledger.committed, ledger.lost) == (10, 0)
    further = ledger.claim("p", 10, 2, 2)
    assert further is not None
    assert further.begin == 10
    assert further.id > 5
    with pytest.raises(StateError, match="over 50 samples, not 100"):
        ledger.take(Ledger(50).snapshot())
