"""Fragments: every tensor is dealt to one of them, alike on all siblings; their vectors go out and come back whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import ModelError, TensorError
from distqat.ids import MicrobatchId
from distqat.model.build import build_stage, build_whole
from distqat.model.fragments import deal
from distqat.model.layout import TensorSlot
from distqat.model.stage import Stage
from tests.model import helpers


def layout(blocks: list[list[int]], buffers: list[int]) -> tuple[TensorSlot, ...]:
    """Blocks with parameters of these sizes, and after them buffers of three elements each in these blocks."""
    slots: list[TensorSlot] = []
    sizes = [
        (f"blocks.{block}.layer{i}.weight", size, True)
        for block, own in enumerate(blocks)
        for i, size in enumerate(own)
    ]
    sizes += [(f"blocks.{block}.layer0.mean", 3, False) for block in buffers]
    for name, size, is_parameter in sizes:
        offset = slots[-1].offset + slots[-1].size if slots else 0
        slots.append(TensorSlot(name, (size,), offset, size, is_parameter))
    return tuple(slots)


def stage(model: str, fragments: int, number: int = 1, index: int = 0, **training: Any) -> Stage:
    run = helpers.config(model, number, **training)
    run = run.model_copy(update={"sync": run.sync.model_copy(update={"fragments": fragments})})
    return build_stage(run, helpers.MODELS[model][0], index, helpers.CrossEntropy())


def test_blocks_are_dealt_like_cards() -> None:
    held = deal(layout([[4], [5, 6], [7], [8], [9]], [1, 2]), 2, "gpt/0")
    names = [[f.slots, f.num_parameters, f.num_elements] for f in held]
    # Blocks 0, 2 and 4 with the buffer of block 2; blocks 1 and 3 with that of block 1.
    assert names == [[(0, 3, 5, 7), 4 + 7 + 9, 23], [(1, 2, 4, 6), 5 + 6 + 8, 22]]


def test_tensors_are_dealt_where_there_are_too_few_blocks() -> None:
    held = deal(layout([[10, 1, 6], [7, 2]], [0]), 3, "gpt/0")
    # 10 | 7, 1 | 6, 2; the buffer lies in the layer of the 10.
    assert [f.slots for f in held] == [(0, 5), (1, 3), (2, 4)]
    assert [f.num_parameters for f in held] == [10, 8, 8]


def test_a_stage_that_cannot_be_cut_so_far() -> None:
    with pytest.raises(
        ModelError, match=r"sync\.fragments is 4, but stage gpt/0 has only 3 tensors to deal out; take at"
    ):
        deal(layout([[1, 2], [3]], [0, 1]), 4, "gpt/0")
    with pytest.raises(ModelError, match=r"sync\.fragments is 3, but stage mlp/0 has only 2 tensors"):
        stage("mlp", 3, 2)
    # The baseline has no siblings, and takes any setting.
    run = helpers.config("mlp")
    run = run.model_copy(update={"sync": run.sync.model_copy(update={"fragments": 999})})
    assert len(build_whole(run, helpers.IMAGES, helpers.CrossEntropy()).fragments) == 1


@given(
    blocks=st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=6), min_size=1, max_size=8),
    data=st.data(),
)
def test_every_tensor_is_in_one_fragment_and_none_is_empty(blocks: list[list[int]], data: st.DataObject) -> None:
    slots = layout(blocks, data.draw(st.lists(st.integers(0, len(blocks) - 1), unique=True).map(sorted)))
    number = data.draw(st.integers(1, sum(map(len, blocks))))
    held = deal(slots, number, "x/0")
    assert sorted(place for f in held for place in f.slots) == list(range(len(slots)))
    for f in held:
        own = [slots[place] for place in f.slots]
        assert f.num_parameters == sum(slot.size for slot in own if slot.is_parameter) > 0
        assert f.num_elements == sum(slot.size for slot in own)
        # Parameters first: in the vector of a fragment they are its beginning.
        assert [slot.is_parameter for slot in own] == sorted((slot.is_parameter for slot in own), reverse=True)
    if number > len(blocks):
        loads = sorted(f.num_parameters for f in held)
        largest = max(slot.size for slot in slots if slot.is_parameter)
        assert loads[-1] - loads[0] <= largest


@pytest.mark.parametrize("fragments", [1, 2, 4, 7])
@pytest.mark.parametrize("model", ["resnet", "gpt"])
def test_gathered_and_scattered(model: str, fragments: int) -> None:
    first, second = stage(model, fragments), stage(model, fragments)
    with torch.no_grad():
        for number, tensor in enumerate([*first.blocks.parameters(), *first.blocks.buffers()], 1):
            tensor.fill_(number)
    for index in reversed(range(fragments)):
        vector = first.gather([index])
        assert vector.dtype == torch.float32
        assert vector.numel() == first.fragments[index].num_elements
        second.scatter([index], vector)
        # Only that fragment is like the first stage's by now.
        same = [slot for slot in range(len(first.layout)) if slot_values(first, slot).equal(slot_values(second, slot))]
        assert set(same) == {place for f in first.fragments[index:] for place in f.slots}
    assert second.flatten().equal(first.flatten())
    everything = list(range(fragments))
    assert first.gather(everything).equal(torch.cat([first.gather([index]) for index in everything]))
    if fragments == 1:
        assert first.gather([0]).equal(first.flatten())


def slot_values(held: Stage, place: int) -> torch.Tensor:
    slot = held.layout[place]
    return held.flatten()[slot.offset : slot.offset + slot.size]


def test_a_vector_that_does_not_fit_changes_nothing() -> None:
    held = stage("gpt", 2)
    before = held.flatten()
    length = held.fragments[1].num_elements
    bad = [torch.zeros(length + 1), torch.zeros(length, dtype=torch.float64), torch.full((length,), torch.nan)]
    for vector in bad:
        with pytest.raises(TensorError, match=r"state of stage gpt/0"):
            held.scatter([1], vector)
    assert held.flatten().equal(before)


def test_a_dropped_step_leaves_the_statistics_that_were_put_into_it() -> None:
    held = stage("resnet", 2, 2)
    before = held.gather([0]), held.gather([1])
    inputs, _ = helpers.batch(helpers.IMAGES, 1, 4)
    held.forward(MicrobatchId(1, 0), inputs)
    put = torch.full_like(before[1], 0.5)
    held.scatter([1], put)
    held.drop_pending()
    assert held.gather([1]).equal(put)
    # The other fragment's are those from before the step.
    assert held.gather([0]).equal(before[0])


def test_half_precision_computes_with_what_was_put_and_forgets_no_other_cast() -> None:
    held = stage("gpt", 2, precision="bf16")
    inputs, _ = helpers.batch(helpers.TOKENS, 1, 2)
    held.forward(MicrobatchId(1, 0), inputs, train=False)
    casts = [held._slice._casts.of(number) for number in range(len(held.blocks))]
    changed = stage("gpt", 2, precision="bf16").gather([1]) * 2
    held.scatter([1], changed)
    touched = {held.layout[place].block for place in held.fragments[1].slots}
    for number, cast in enumerate(casts):
        assert (held._slice._casts.of(number) is cast) is (number not in touched)
    fresh = stage("gpt", 2, precision="bf16")
    fresh.scatter([1], changed)
    results = [s.forward(MicrobatchId(1, 0), inputs, train=False) for s in (held, fresh)]
    assert results[0].equal(results[1])
