"""The schedule of rounds: warm-up, ramp, and fragments that take turns."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging.phases import Phase, phase
from distqat.sections import SyncSection


def section(**settings: object) -> SyncSection:
    return SyncSection.model_validate(settings)


def test_the_warm_up_has_all_fragments_after_every_step_and_nothing_goes_on_beside_it() -> None:
    sync = section(warmup_steps=3, fragments=2, inner_steps=10, overlap=4)
    assert [phase(number, sync) for number in range(3)] == [Phase(True, 1, 1.0, 0.0, (0, 1), 0)] * 3
    assert not phase(3, sync).is_plain


def test_then_one_fragment_after_the_other_each_every_inner_steps() -> None:
    sync = section(warmup_steps=1, fragments=3, inner_steps=12, overlap=2)
    rounds = [phase(number, sync) for number in range(1, 8)]
    assert [how.fragments for how in rounds] == [(0,), (1,), (2,), (0,), (1,), (2,), (0,)]
    assert {(how.steps, how.overlap, how.learning_rate, how.momentum) for how in rounds} == {(4, 2, 0.5, 0.8)}


def test_the_ramp_by_hand() -> None:
    # H = 9 over four turns of each of two fragments: 1, 3, 5, 7 and then 9 steps; half of that from round to round,
    # where halves go to the even number: 0.5 to 0 and so to the least, 1.
    sync = section(warmup_steps=0, ramp_rounds=4, inner_steps=9, fragments=2, outer_momentum=0.8, overlap=3)
    rounds = [phase(number, sync) for number in range(12)]
    assert [how.steps for how in rounds] == [1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4]
    assert [how.momentum for how in rounds] == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 0.8, 0.8])
    assert [how.overlap for how in rounds] == [0, 0, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3]


def test_an_eager_round_may_last_until_the_next_begins() -> None:
    sync = section(warmup_steps=0, ramp_rounds=2, inner_steps=5, overlap=5, eager=True)
    rounds = [phase(number, sync) for number in range(3)]
    assert [(how.steps, how.overlap) for how in rounds] == [(1, 1), (3, 3), (5, 5)]


@given(
    warmup=st.integers(0, 5),
    ramp=st.integers(0, 12),
    fragments=st.integers(1, 6),
    times=st.integers(1, 20),
    momentum=st.floats(0, 0.95),
)
def test_a_ramp_only_grows_and_ends_with_the_settings(
    warmup: int, ramp: int, fragments: int, times: int, momentum: float
) -> None:
    sync = section(
        warmup_steps=warmup,
        ramp_rounds=ramp,
        fragments=fragments,
        inner_steps=fragments * times,
        outer_momentum=momentum,
        overlap=(times - 1) // 2,
    )
    rounds = [phase(warmup + number, sync) for number in range(fragments * (ramp + 2))]
    for before, after in pairwise(rounds):
        assert before.steps <= after.steps
        assert before.momentum <= after.momentum
    assert (rounds[-1].steps, rounds[-1].momentum, rounds[-1].overlap) == (times, momentum, sync.overlap)
    if ramp:
        assert (rounds[0].steps, rounds[0].momentum) == (1, 0.0)
    for how in rounds:
        assert 0 <= how.overlap < how.steps
