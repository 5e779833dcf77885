"""Local state: a stage elsewhere goes on from it as if nothing had happened."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distqat.errors import StateError
from distqat.model.local import LocalState
from tests.model import helpers

SGD = {"name": "sgd", "momentum": 0.9}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [{}, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("model", helpers.MODELS)
def test_others_go_on_where_it_was_taken_bit_for_bit(model: str, optimizer: dict[str, Any], precision: str) -> None:
    shape = helpers.MODELS[model][0]
    ours, theirs = (helpers.stages(model, 2, precision=precision, **optimizer) for _ in range(2))
    drive = helpers.Drive(ours)
    for step in (1, 2):
        drive.step(step, *helpers.batch(shape, step))
    for mine, other in zip(ours, theirs, strict=True):
        other.restore(mine.local_state())
        assert other.version == 2
    heir = helpers.Drive(theirs)
    heir.samples = drive.samples
    for step in (3, 4):
        assert drive.step(step, *helpers.batch(shape, step)) == heir.step(step, *helpers.batch(shape, step))
    for name, tensor in helpers.tensors(ours).items():
        assert torch.equal(tensor, helpers.tensors(theirs)[name]), name


def test_amid_a_step_it_is_that_of_the_last_commit() -> None:
    chain = helpers.stages("resnet", 2)
    drive = helpers.Drive(chain)
    drive.step(1, *helpers.batch(helpers.IMAGES, 1))
    before = [stage.local_state() for stage in chain]
    drive.compute(2, *helpers.batch(helpers.IMAGES, 2))
    for stage, state in zip(chain, before, strict=True):
        amid = stage.local_state()
        assert amid.version == state.version == 1
        assert all(torch.equal(tensor, state.tensors[name]) for name, tensor in amid.tensors.items())
    drive.conclude(2)
    assert not all(torch.equal(t, chain[0].local_state().tensors[name]) for name, t in before[0].tensors.items())


def test_a_copy_stays_as_it_is_while_the_stage_trains_on() -> None:
    chain = helpers.stages("mlp", 1)
    state = chain[0].local_state()
    kept = {name: tensor.clone() for name, tensor in state.tensors.items()}
    helpers.train_step(chain, 1, *helpers.batch(helpers.IMAGES, 1))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.tensors.items())
    assert state.nbytes == sum(tensor.nbytes for tensor in kept.values()) > 0


def test_a_state_of_something_else_is_refused_and_changes_nothing() -> None:
    first, second = helpers.stages("mlp", 2)
    before, state = first.flatten(), first.local_state()
    name = next(iter(state.tensors))
    less = {key: tensor for key, tensor in state.tensors.items() if key != name}
    for wrong, message in (
        (second.local_state(), "is missing in the state"),
        (LocalState(1, less), f"{name} is missing"),
        (LocalState(1, {**state.tensors, "values/other": before}), "values/other is in the state only"),
        (LocalState(1, {**less, name: before[:3]}), rf"{name} must be float32 .*, got float32 \(3,\)"),
        (LocalState(1, {**less, name: state.tensors[name].double()}), "got float64"),
    ):
        with pytest.raises(StateError, match=message):
            first.restore(wrong)
    assert first.version == 0
    assert torch.equal(first.flatten(), before)
