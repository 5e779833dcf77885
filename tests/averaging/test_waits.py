from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging.waits import FRUITLESS, LEAST_PATIENCE, LEAST_QUIET, REMEMBERED, Patience, Waits
from distqat.sections import SyncSection


@given(st.floats(0.3, 600), st.integers(0, 10**9))
def test_who_waits_for_a_wait_waits_longer(max_wait: float, num_elements: int) -> None:
    waits = Waits.of(SyncSection(max_wait=max_wait), num_elements)
    assert waits.invite < waits.form == max_wait < waits.join
    assert waits.progress < waits.answer
    assert waits.answer + waits.ballot < waits.vote
    assert waits.join + waits.vote < waits.total
    # What a round waits for its siblings, it does not take for their death.
    assert waits.form + waits.invite < waits.presumed


def test_patience_is_the_longest_wait_until_something_is_known() -> None:
    assert Patience(10.0).seconds() == 10.0


def test_siblings_that_come_together_are_not_waited_for_long() -> None:
    patience = Patience(10.0)
    for spread in (0.010, 0.012, 0.015, 0.011):
        patience.note(spread)
    assert patience.seconds() == LEAST_PATIENCE


def test_patience_follows_the_arrivals() -> None:
    # Median 3.0, deviations 0, 0.2, 0.1, 0.1, 0.3: their median is 0.1, so 3.0 + 8 x 0.1.
    patience = Patience(10.0)
    for spread in (3.0, 3.2, 2.9, 3.1, 2.7):
        patience.note(spread)
    assert abs(patience.seconds() - 3.8) < 1e-9


def test_patience_never_exceeds_the_longest_wait() -> None:
    patience = Patience(2.0)
    for spread in (0.1, 50.0, 0.1, 50.0):
        patience.note(spread)
    assert patience.seconds() == 2.0


def test_who_answers_nothing_is_waited_for_briefly() -> None:
    patience = Patience(10.0)
    assert patience.quiet_seconds() == LEAST_PATIENCE
    for _ in range(4):
        patience.note(0.01)
    assert patience.quiet_seconds() == LEAST_QUIET
    # On a slow network as long as siblings take there.
    for _ in range(REMEMBERED):
        patience.note(2.0)
    assert patience.quiet_seconds() == patience.seconds() == 2.0


def test_who_is_missed_again_and_again_is_waited_for_longer() -> None:
    """It may be one that only is slow; of those who answer this says nothing."""
    patience = Patience(10.0)
    patience.note(0.01)
    for _ in range(FRUITLESS):
        assert patience.quiet_seconds() == LEAST_QUIET
        patience.note_quiet()
    assert patience.quiet_seconds() == 2 * LEAST_QUIET
    assert patience.seconds() == LEAST_PATIENCE
    for _ in range(2000 * FRUITLESS):
        patience.note_quiet()
    assert patience.quiet_seconds() == 10.0
    patience.note(0.01)
    assert patience.quiet_seconds() == LEAST_QUIET


def test_old_arrivals_are_forgotten() -> None:
    patience = Patience(10.0)
    patience.note(9.0)
    for _ in range(REMEMBERED):
        patience.note(0.01)
    assert patience.seconds() == LEAST_PATIENCE
