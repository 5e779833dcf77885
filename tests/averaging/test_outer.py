from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.averaging import outer
from distqat.averaging.contribution import Average
from distqat.averaging.outer import Part
from distqat.averaging.phases import Phase, phase
from distqat.averaging.spans import Shape
from distqat.ids import PeerId, PipelineId, StepRef
from distqat.model import state as digests
from distqat.sections import SyncSection
from distqat.wire import codecs
from tests.averaging import naive
from tests.averaging.vectors import SHAPES, drifted, elements, normal, outer_state, phase_of
from tests.averaging.words import committed, founding

SYNC = SyncSection(warmup_steps=3, inner_steps=7, outer_learning_rate=0.6, outer_momentum=0.8)
PHASES = [phase_of(True, 0, 1, 2, 3), phase_of(False, 0), phase_of(False, 1, 3), phase_of(False, 2)]


def test_founding_copies() -> None:
    local = torch.tensor([1.0, 2.0, 3.0])
    state = founding(local, 2)
    local[0] = 9.0
    assert state.anchor.tolist() == [1.0, 2.0, 3.0]
    assert (state.round, state.num_parameters, state.num_elements) == (0, 2, 3)
    assert repr(state) == f"<OuterState round 0 {state.digest[:8]}>"


@pytest.mark.parametrize("how", PHASES)
@pytest.mark.parametrize("codec", ["none", "int8"])
@pytest.mark.parametrize("block", [1000, 1 << 20])
def test_block_by_block_it_is_the_simple_step(
    how: Phase, codec: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "BLOCK_BYTES", block)
    state = outer_state()
    vector = normal(elements(state, how), 5)
    average = Average(codec, len(vector), codecs.find(codec).encode(vector), bytes=0)
    expected = naive.apply(state, average.vector, how, is_exact=codec == "none")
    for given_as in (average, average.vector):
        after = outer.apply(state, given_as, how, codec=codec)
        assert [part.digest for part in after.parts] == [part.digest for part in expected.parts]
        assert torch.equal(after.anchor, expected.anchor)
        assert torch.equal(after.momentum, expected.momentum)
        assert after.digest == expected.digest


@pytest.mark.parametrize("how", PHASES)
def test_the_digest_is_that_of_the_parts(how: Phase) -> None:
    """It is made on the way, block by block."""
    after = outer.apply(outer_state(), normal(elements(outer_state(), how), 5), how)
    for part in after.parts:
        assert part.digest == Part.of(part.anchor.clone(), part.momentum.clone()).digest


@pytest.mark.parametrize("codec", ["none", "int8", "int2"])
@pytest.mark.parametrize("how", PHASES)
@given(data=st.data())
@settings(max_examples=20)
def test_the_average_may_come_in_pieces_in_any_order(how: Phase, codec: str, data: st.DataObject) -> None:
    """Some are taken as they come, the rest at the end; a block that is not whole yet is not read."""
    state = outer_state()
    vector = normal(elements(state, how), 5)
    whole = codecs.find(codec).encode(vector)
    bounds = [*range(0, len(vector), data.draw(st.sampled_from([256, 512, 1 << 20]))), len(vector)]
    pieces = data.draw(st.permutations(list(pairwise(bounds))))
    num_early = data.draw(st.integers(0, len(pieces)))
    coming = Average(codec, len(vector), memoryview(bytearray(b"\xff" * len(whole))), bytes=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "BLOCK_BYTES", data.draw(st.sampled_from([400, 4096])))
        step = outer.Step(state, how, codec)
        for number, (begin, end) in enumerate(pieces):
            for place, part in zip(
                codecs.find(codec).cut(coming.payload, len(vector), begin, end),
                codecs.find(codec).cut(whole, len(vector), begin, end),
                strict=True,
            ):
                place[:] = part
            if number < num_early:
                step.take(coming, begin, end)
        after = step.result(coming, [], [])
        expected = outer.apply(state, Average(codec, len(vector), whole, bytes=0), how)
    assert torch.equal(after.anchor, expected.anchor)
    assert torch.equal(after.momentum, expected.momentum)
    assert after.digest == expected.digest


def test_there_is_room_for_the_blocks_of_every_codec() -> None:
    assert all(2 * codecs.find(name).block <= outer.MARGIN for name in codecs.names())


def test_fragments_that_are_not_in_the_round_are_the_same_objects() -> None:
    state, how = outer_state(), phase_of(False, 1)
    after = outer.apply(state, normal(SHAPES[1].num_elements, 5), how)
    assert [a is b for a, b in zip(state.parts, after.parts, strict=True)] == [True, False, True, True]


def test_a_plain_round_by_differences_ends_where_the_values_do() -> None:
    """But for rounding; and a buffer moves by its difference in later rounds too."""
    state, warm = outer_state(), phase_of(True, 0, 1, 2, 3)
    local = drifted(state, warm, 3)
    values = outer.apply(state, naive.delta(state, local, warm), warm)
    differences = outer.apply(state, naive.delta(state, local, warm, is_exact=False), warm, codec="int8")
    assert torch.allclose(values.anchor, differences.anchor, atol=1e-6)
    later = phase_of(False, 0)
    local = drifted(state, later, 3)
    exact = outer.apply(state, naive.delta(state, local, later), later)
    lossy = outer.apply(state, naive.delta(state, local, later, is_exact=False), later, codec="int8")
    assert torch.equal(exact.parts[0].anchor[:700], lossy.parts[0].anchor[:700])
    assert torch.allclose(lossy.parts[0].anchor[700:], local[700:], atol=1e-6)


def test_buffers_are_averaged_and_never_stepped() -> None:
    state = founding(torch.tensor([1.0, 5.0]), 1)
    how = phase(10, SYNC)
    contribution = naive.delta(state, torch.tensor([0.0, 6.0]), how)
    assert contribution.tolist() == [1.0, 6.0]
    assert outer.apply(state, contribution, how).anchor[1].item() == 6.0


def test_a_stage_without_buffers_or_without_parameters() -> None:
    how = phase(10, SYNC)
    for parameters in (0, 2):
        state = founding(torch.ones(2), parameters)
        after = outer.apply(state, naive.delta(state, torch.ones(2), how), how)
        assert after.anchor.tolist() == [1.0, 1.0]


@settings(deadline=None)
@given(st.integers(0, 6), st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4))
def test_nothing_that_was_committed_changes(number: int, local: list[float]) -> None:
    state = committed(torch.arange(4.0), torch.ones(3), number)
    before = (state.anchor.clone(), state.momentum.clone())
    how = phase(number, SYNC)
    vector = torch.tensor(local)
    contribution = naive.delta(state, vector, how)
    after = outer.apply(state, contribution, how)
    contribution += 1.0
    assert torch.equal(state.anchor, before[0])
    assert torch.equal(state.momentum, before[1])
    assert vector.tolist() == local
    assert after.round == number + 1
    assert after.digest == committed(after.anchor, after.momentum, number + 1).digest


def test_the_digest_is_of_round_members_anchor_and_momentum() -> None:
    state = committed(torch.ones(2), torch.ones(1), 4)
    others = [
        committed(torch.ones(2), torch.ones(1), 5),
        committed(torch.tensor([1.0, 2.0]), torch.ones(1), 4),
        committed(torch.ones(2), torch.zeros(1), 4),
        # The same numbers, cut elsewhere.
        committed(torch.ones(1), torch.ones(2), 4),
        outer.OuterState.of(state.parts, 4, [PeerId("alice")]),
    ]
    assert len({state.digest, *(other.digest for other in others)}) == 6


def test_gathered_fragments_lie_one_behind_the_other() -> None:
    state = outer_state([Shape(2, 3), Shape(1, 1), Shape(0, 2)])
    anchors = [part.anchor for part in state.parts]
    assert torch.equal(state.gather([0, 2]), torch.cat((anchors[0], anchors[2])))
    assert state.gather([1]) is anchors[1]
    assert [(own.tolist(), shape) for own, shape in outer.split(torch.arange(6.0), state.shapes)] == [
        ([0.0, 1.0, 2.0], Shape(2, 3)),
        ([3.0], Shape(1, 1)),
        ([4.0, 5.0], Shape(0, 2)),
    ]


def test_what_an_average_is_read_from_is_not_written_to() -> None:
    """With `none` the blocks are its own bytes."""
    state, how = outer_state(), phase_of(True, 0, 1, 2, 3)
    vector = normal(elements(state, how), 5)
    data = codecs.find("none").encode(vector)
    before = bytes(data)
    average = Average("none", len(vector), data, bytes=0)
    after = outer.apply(state, average, how)
    assert bytes(data) == before
    assert np.shares_memory(average.read(0, 5, np.empty(0, np.float32)), vector.numpy())
    assert not any(np.shares_memory(part.anchor.numpy(), vector.numpy()) for part in after.parts)


def test_the_cut_grows_with_what_is_contributed_and_is_part_of_the_digest() -> None:
    def steps(**last: int) -> tuple[StepRef, ...]:
        return tuple(StepRef(PipelineId(name), step) for name, step in last.items())

    cut = outer.advanced(steps(p=4, q=7), steps(p=9, r=2))
    assert cut == steps(q=7, p=9, r=2)
    # A word that comes late takes nothing back.
    assert outer.advanced(cut, steps(p=3)) == steps(q=7, r=2, p=9)
    many = outer.advanced((), steps(**{f"p{number}": number for number in range(300)}))
    assert len(many) == outer.MOST_PIPELINES
    assert many[-1].step == 299
    state, how = outer_state(), PHASES[0]
    average = state.gather(how.fragments)
    one, other = (outer.apply(state, average, how, origins=steps(p=step)) for step in (4, 5))
    assert (one.cut, other.cut) == (steps(p=4), steps(p=5))
    assert one.digest != other.digest
    assert [part.digest for part in one.parts] == [part.digest for part in other.parts]
