"""Books that are old are completed by the trainers: no gap is passed over, and what was given back is no hindrance."""

from __future__ import annotations

import json

import pytest

from distqat.data import ledger as ledgers
from distqat.data.claims import Claim, LedgerSnapshot, claims_from_json, claims_to_json
from distqat.data.ledger import Ledger
from distqat.errors import StateError


def claimed(ledger: Ledger, pipeline: str, step: int, samples: int = 10) -> Claim:
    claim = ledger.claim(pipeline, samples, ledger.last_serial(pipeline) + 1, step)
    assert claim is not None
    return claim


def trained(ledger: Ledger, pipeline: str, first: int, last: int) -> list[Claim]:
    """The claims of these steps, which are booked."""
    claims = [claimed(ledger, pipeline, step) for step in range(first, last + 1)]
    for claim in claims:
        assert ledger.resolve(claim.id, True)
    return claims


def restored(snapshot: LedgerSnapshot) -> Ledger:
    return Ledger.restore(LedgerSnapshot.from_json(snapshot.to_json()))


def test_a_gap_in_what_trainers_remember_is_seen_until_it_is_closed() -> None:
    live = Ledger(2010)
    trained(live, "p", 1, 1)
    copied = live.snapshot()
    booked = trained(live, "p", 2, 201)
    late = restored(copied)
    assert late.lacks("p", booked[-64:])
    assert not late.lacks("p", booked)
    assert not late.lacks("p", [])
    assert late.lacks("new", booked[-64:])
    late.complete([], booked[-64:])
    # What came before them is not in the books, though later steps are.
    assert not late.covers({"p": 150})
    assert not late.covers({"p": 201})
    assert late.covers({"p": 1})
    assert not restored(late.snapshot()).covers({"p": 150})
    trained(late, "p", 202, 202)
    assert not late.covers({"p": 202})
    whole = restored(copied)
    assert whole.complete([], booked) == 200
    assert whole.covers({"p": 201})
    assert (whole.committed, whole.lost, whole.doubled) == (2010, 0, 0)
    assert whole.claim("p", 10, 999, 202) is None
    # They may go back to each of these steps.
    whole.roll_back({"p": 150})
    assert (whole.committed, whole.covers({"p": 150}), whole.covers({"p": 151})) == (1500, True, False)


def test_who_remembers_no_more_than_the_last_steps_may_have_forgotten_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "MOST_STEPS", 5)
    live = Ledger(200)
    booked = trained(live, "p", 1, 9)
    late = Ledger(200)
    late.complete([], booked[-5:])
    assert not late.covers({"p": 9})
    whole = Ledger(200)
    whole.complete([], booked)
    assert whole.covers({"p": 9})


def test_a_pipeline_that_began_at_a_checkpoint_lacks_nothing_before() -> None:
    late = Ledger(200)
    late.complete([], trained(Ledger(200), "p", 101, 103))
    assert late.covers({"p": 103})
    assert late.covers({"p": 100})
    assert not late.covers({"p": 104})


@pytest.mark.parametrize("is_booked", [True, False])
def test_what_another_has_by_now_was_given_back(is_booked: bool) -> None:
    live = Ledger(30)
    stale = claimed(live, "p1", 1)
    copied = live.snapshot()
    live.release("p1")
    mine = claimed(live, "p2", 1)
    assert (mine.begin, mine.end) == (stale.begin, stale.end)
    late = restored(copied)
    assert late.complete([] if is_booked else [mine], [mine] if is_booked else []) == 1
    if not is_booked:
        assert late.resolve(mine.id, True)
    assert (late.committed, late.open, late.lost, late.doubled) == (10, 0, 0, 0)
    rest = claimed(late, "p3", 1, 30)
    assert (rest.begin, rest.end) == (10, 30)


def test_of_what_was_given_back_in_part_the_rest_is_free_again() -> None:
    live = Ledger(30)
    claimed(live, "p1", 1)
    copied = live.snapshot()
    live.release("p1")
    mine = claimed(live, "p2", 1, 4)
    late = restored(copied)
    late.complete([], [mine])
    assert (late.committed, late.open, late.lost) == (4, 0, 0)
    assert claimed(late, "p3", 1).begin == 4


def test_what_is_booked_counts_before_what_others_hold() -> None:
    live = Ledger(30)
    stale = claimed(live, "p1", 1)
    live.release("p1")
    mine = claimed(live, "p2", 1)
    late = Ledger(30)
    # The trainer of the first was cut off, and has not heard that it was released.
    assert late.complete([stale], [mine]) == 1
    assert (late.committed, late.open, late.lost) == (10, 0, 0)


def test_an_older_claim_does_not_displace_a_newer_one() -> None:
    live = Ledger(30)
    stale = claimed(live, "p1", 1)
    live.release("p1")
    claimed(live, "p2", 1)
    assert live.complete([stale], []) == 0
    assert live.holders == {"p2"}


def test_what_was_committed_after_it_was_released_is_learned_once() -> None:
    live = Ledger(30)
    mine = claimed(live, "p1", 1)
    live.release("p1")
    assert live.complete([], [mine]) == 1
    assert live.complete([], [mine]) == 0
    assert (live.committed, live.open, live.lost, live.doubled) == (10, 0, 0, 0)


def test_claims_are_what_was_written() -> None:
    claims = (Claim(1, "p", 0, 10, 1), Claim(2, "p", 10, 20, 2))
    assert claims_from_json(claims_to_json(claims)) == claims
    for text in ("", "{}", "[1]", '[[1, "p", 0, "x", 1]]', '[["p", 1, 0, 1, 1]]', '[[1, "p", -4, 1, 1]]'):
        with pytest.raises(StateError, match="they are no claims"):
            claims_from_json(text)


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("committed", "[[0]]"),
        ("committed", "[3]"),
        ("committed", '[["a", "b"]]'),
        ("budget", '"100"'),
        ("num_claims", "null"),
        ("last", '[["p", 1]]'),
        ("known", '[["p", 1, null]]'),
        ("steps", "7"),
        ("open", '[{"id": "x", "pipeline": "p", "begin": 0, "end": 1}]'),
        ("claims_committed", "7"),
    ],
)
def test_books_of_wrong_kinds_are_refused(entry: str, wrong: str) -> None:
    tree = json.loads(Ledger(100).snapshot().to_json())
    tree[entry] = json.loads(wrong)
    with pytest.raises(StateError, match="they are no ledger"):
        Ledger.restore(LedgerSnapshot.from_json(json.dumps(tree)))
