"""What overlapped rounds do to local values, by hand and against the papers' formulas."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.averaging import merging
from distqat.averaging.outer import OuterState
from distqat.averaging.phases import Phase
from distqat.averaging.spans import Shape
from tests.averaging.state import stock

HALVES = Phase(is_plain=False, steps=10, learning_rate=0.5, momentum=0.5)
"""All arithmetic with halves is exact in fp32, so a person can follow it."""


def test_merged_by_hand() -> None:
    local, committed = torch.tensor([8.0, -2.0]), torch.tensor([4.0, 6.0])
    assert merging.merged(local, committed, 0.25).tolist() == [5.0, 4.0]
    assert merging.merged(local, committed, 0.0) is committed


def test_moved_by_hand() -> None:
    # Two fragments: two parameters and a statistic; one parameter and two statistics.
    shapes = [Shape(2, 3), Shape(1, 3)]
    local = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    begun = torch.tensor([0.5, 1.0, 9.0, 2.0, 9.0, 9.0])
    target = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    assert merging.moved(local, begun, target, shapes).tolist() == [10.5, 21.0, 30.0, 42.0, 50.0, 60.0]
    assert merging.moved(local, begun, target, shapes, with_statistics=False).tolist() == [
        10.5,
        21.0,
        3.0,
        42.0,
        5.0,
        6.0,
    ]


def test_eager_steps_by_hand() -> None:
    """Two siblings, three rounds late: each begins where its own contributions lead, from what all have committed."""
    shape = Shape(1, 2)
    state = OuterState.founding(torch.tensor([16.0, 1.0]), [shape])
    # Round 0: own local value 8, so d = 8; half of the samples. m = 4; step = 1/2 (4 + 1/2 4) = 3.
    first = merging.ahead(state, torch.tensor([8.0, 7.0]), HALVES, 0.5, {})
    assert (first.begun.tolist(), first.momenta[0].tolist()) == ([13.0, 7.0], [4.0])
    # It was committed as 12 meanwhile. Round 1: local value 4, so d = 8, and half of it 4.
    # m = 1/2 4 + 4 = 6; step = 1/2 (4 + 1/2 6) = 3.5.
    state = OuterState.founding(torch.tensor([12.0, 1.0]), [shape])
    second = merging.ahead(state, torch.tensor([4.0, 7.0]), HALVES, 0.5, first.momenta)
    assert (second.begun.tolist(), second.momenta[0].tolist()) == ([8.5, 7.0], [6.0])


floats = st.floats(-4, 4, width=32)
rounds = st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=8)


@settings(deadline=None)
@given(rounds, st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.25, 1.0]))
def test_eager_replicas_are_those_of_the_paper(moves: list[tuple[float, float, float]], mu: float, eta: float) -> None:
    """The paper: each replica has an outer optimizer of its own, fed with d_avg(t-H) + w (d_i(t) - d_i(t-H))."""
    how = Phase(is_plain=False, steps=1, learning_rate=eta, momentum=mu)
    w, count = 1 / 3, 3
    theta = [0.0] * count
    momentum = [0.0] * count
    last = [0.0] * count
    # Ours: what all have committed, with its momentum, and of each replica the momentum of its own part.
    anchor, outer_momentum = 0.0, 0.0
    own: list[dict[int, torch.Tensor]] = [{} for _ in range(count)]
    for contributed in moves:
        late = sum(last) / count
        outer_momentum = mu * outer_momentum + late
        anchor -= eta * (late + mu * outer_momentum)
        for index, d in enumerate(contributed):
            eager = late + w * (d - last[index])
            momentum[index] = mu * momentum[index] + eager
            theta[index] -= eta * (eager + mu * momentum[index])
            state = OuterState.founding(torch.tensor([anchor]), [Shape(1, 1)])
            found = merging.ahead(state, torch.tensor([anchor - d]), how, w, own[index])
            own[index] = found.momenta
            assert abs(float(found.begun[0]) - theta[index]) < 1e-3
        last = list(contributed)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True).map(sorted), st.integers(1, 4))
def test_carried_progress_is_the_same_progress_from_the_new_anchor(fragments: list[int], count: int) -> None:
    before = stock.make_state(number=2)
    after = stock.rounds(before, count)[-1][1]
    shapes = [before.parts[index].shape for index in fragments]
    learned = torch.randn(sum(shape.num_elements for shape in shapes), generator=torch.Generator().manual_seed(count))
    local = before.gather(fragments) + learned
    untouched = local.clone()
    moved = merging.carry(local, before, after, fragments)
    assert torch.equal(local, untouched)
    begin = 0
    for index, shape in zip(fragments, shapes, strict=True):
        own, was = moved[begin : begin + shape.num_elements], local[begin : begin + shape.num_elements]
        if before.parts[index] is after.parts[index]:
            assert torch.equal(own, was)
        else:
            end = shape.num_parameters
            anchor = after.parts[index].anchor
            assert torch.allclose(own[:end] - anchor[:end], learned[begin : begin + end], atol=1e-5)
            assert torch.equal(own[end:], anchor[end:])
        begin += shape.num_elements
