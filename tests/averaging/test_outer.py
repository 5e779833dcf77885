from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import outer
from distqat.averaging.outer import OuterState
from distqat.sections import SyncSection

SYNC = SyncSection(warmup_steps=3, inner_steps=7, outer_learning_rate=0.6, outer_momentum=0.8)


def test_warm_up_then_diloco() -> None:
    assert [outer.steps_between(number, SYNC) for number in range(5)] == [1, 1, 1, 7, 7]
    warm, later = outer.phase(2, SYNC), outer.phase(3, SYNC)
    assert (warm.is_plain, warm.learning_rate, warm.momentum) == (True, 1.0, 0.0)
    assert (later.is_plain, later.learning_rate, later.momentum) == (False, 0.6, 0.8)


def test_without_warm_up_the_first_round_is_diloco() -> None:
    assert not outer.phase(0, SyncSection(warmup_steps=0)).is_plain


def test_founding_copies() -> None:
    local = torch.tensor([1.0, 2.0, 3.0])
    state = OuterState.founding(local, num_parameters=2)
    local[0] = 9.0
    assert state.anchor.tolist() == [1.0, 2.0, 3.0]
    assert (state.round, state.num_parameters, state.num_elements) == (0, 2, 3)
    assert repr(state) == f"<OuterState round 0 {state.digest[:8]}>"


def test_buffers_are_averaged_and_never_stepped() -> None:
    state = OuterState.founding(torch.tensor([1.0, 5.0]), num_parameters=1)
    how = outer.phase(10, SYNC)
    contribution = outer.delta(state, torch.tensor([0.0, 6.0]), how)
    assert contribution.tolist() == [1.0, 6.0]
    assert outer.apply(state, contribution, how).anchor[1].item() == 6.0


def test_a_stage_without_buffers_or_without_parameters() -> None:
    how = outer.phase(10, SYNC)
    for parameters in (0, 2):
        state = OuterState.founding(torch.ones(2), num_parameters=parameters)
        after = outer.apply(state, outer.delta(state, torch.ones(2), how), how)
        assert after.anchor.tolist() == [1.0, 1.0]


@given(st.integers(0, 6), st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4))
def test_nothing_that_was_committed_changes(number: int, local: list[float]) -> None:
    state = OuterState.of(torch.arange(4.0), torch.ones(3), number)
    before = (state.anchor.clone(), state.momentum.clone())
    how = outer.phase(number, SYNC)
    vector = torch.tensor(local)
    contribution = outer.delta(state, vector, how)
    after = outer.apply(state, contribution, how)
    contribution += 1.0
    assert torch.equal(state.anchor, before[0])
    assert torch.equal(state.momentum, before[1])
    assert vector.tolist() == local
    assert after.round == number + 1
    assert after.digest == OuterState.of(after.anchor, after.momentum, number + 1).digest


def test_the_digest_is_of_round_anchor_and_momentum() -> None:
    state = OuterState.of(torch.ones(2), torch.ones(1), 4)
    others = [
        OuterState.of(torch.ones(2), torch.ones(1), 5),
        OuterState.of(torch.tensor([1.0, 2.0]), torch.ones(1), 4),
        OuterState.of(torch.ones(2), torch.zeros(1), 4),
    ]
    assert state.digest not in {other.digest for other in others}
