"""What a stage refuses, and that a refusal changes nothing; commit exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distqat.errors import ModelError, StaleError, TensorError
from distqat.ids import MicrobatchId
from distqat.model.build import build_stage
from distqat.model.stage import Stage
from tests.model import helpers

INPUTS, LABELS = helpers.batch(helpers.IMAGES, 1, 4)
FIRST = MicrobatchId(1, 0)


@contextmanager
def nothing_changes(stage: Stage) -> Iterator[None]:
    """Parameters, running statistics, gradients, stash and version stay as they are."""

    def look() -> list[object]:
        gradients = [None if p.grad is None else p.grad.tolist() for p in stage.blocks.parameters()]
        held = replace(stage.statistics(), most_stashed_bytes=0)
        return [stage.flatten().tolist(), gradients, held, repr(stage)]

    before = look()
    yield
    assert look() == before


@pytest.fixture
def chain() -> list[Stage]:
    return helpers.stages("resnet", 3)


@pytest.fixture
def whole() -> Stage:
    return helpers.stages("resnet", 1)[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda inputs: inputs[:, :, :7], r"expected float32 \(batch, 1, 8, 8\), got float32 \(4, 1, 7, 8\)"),
        (lambda inputs: inputs[0], r"got float32 \(1, 8, 8\)"),
        (lambda inputs: inputs[:0], r"got float32 \(0, 1, 8, 8\)"),
        (lambda inputs: inputs.sum(), r"got float32 \(\)"),
        (lambda inputs: inputs.double(), r"got float64 \(4, 1, 8, 8\)"),
        (lambda inputs: inputs.where(inputs < 2, torch.nan), r"of 256 elements are NaN or infinite"),
        (lambda inputs: inputs.where(inputs < 2, torch.inf), r"of 256 elements are NaN or infinite"),
    ],
)
def test_inputs_that_do_not_fit(
    spoil: Callable[[Tensor], Tensor], message: str, chain: list[Stage], whole: Stage
) -> None:
    for train in (True, False):
        with nothing_changes(chain[0]), pytest.raises(TensorError, match=message):
            chain[0].forward(FIRST, spoil(INPUTS), train)
        with nothing_changes(whole), pytest.raises(TensorError, match=message):
            whole.loss(FIRST, spoil(INPUTS), {"labels": LABELS}, 4, train)


def test_large_finite_inputs_are_taken(chain: list[Stage]) -> None:
    large = torch.full((2, 1, 8, 8), 3e38)
    with pytest.raises(TensorError, match="expected"):
        chain[1].forward(FIRST, large)
    assert chain[0].forward(FIRST, large, train=False).shape[0] == 2


def test_tokens_outside_the_vocabulary() -> None:
    (stage,) = helpers.stages("gpt", 1)
    inputs, labels = helpers.batch(helpers.TOKENS, 1, 2)
    for bad in (-1, 32):
        spoiled = inputs.clone()
        spoiled[0, 0] = bad
        with nothing_changes(stage), pytest.raises(TensorError, match=f"expected elements from 0 to 31, got .*{bad}"):
            stage.loss(FIRST, spoiled, {"labels": labels}, 2)


def test_gradients_that_do_not_fit(chain: list[Stage]) -> None:
    output = chain[0].forward(FIRST, INPUTS)
    with nothing_changes(chain[0]):
        with pytest.raises(TensorError, match="gradient for stage resnet/0: expected"):
            chain[0].backward(FIRST, output[:1])
        with pytest.raises(TensorError, match="NaN"):
            chain[0].backward(FIRST, output * torch.nan)
    assert chain[0].backward(FIRST, output) is None


def test_targets_that_do_not_fit(whole: Stage) -> None:
    with nothing_changes(whole):
        with pytest.raises(TensorError, match="target 'labels': expected 4 samples"):
            whole.loss(FIRST, INPUTS, {"labels": LABELS[:3]}, 4)
        with pytest.raises(TensorError, match="do not fit task cross entropy"):
            whole.loss(FIRST, INPUTS, {"words": LABELS}, 4)
        with pytest.raises(TensorError, match="do not fit task cross entropy"):
            whole.loss(FIRST, INPUTS, {"labels": LABELS + 100}, 4)
        with pytest.raises(TensorError, match="4 samples in a batch of 3"):
            whole.loss(FIRST, INPUTS, {"labels": LABELS}, 3)


@pytest.mark.parametrize("earlier", [0, 2])
def test_nan_loss_leaves_no_trace(earlier: int) -> None:
    class Broken(helpers.CrossEntropy):
        is_broken = False

        def loss(self, output: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
            total, sums = super().loss(output, targets)
            return (total * torch.nan if self.is_broken else total), sums

    task = Broken()
    stage = build_stage(helpers.config("resnet"), helpers.IMAGES, 0, task)
    for index in range(earlier):
        stage.loss(MicrobatchId(1, index), INPUTS, {"labels": LABELS}, 12)
    task.is_broken = True
    with nothing_changes(stage), pytest.raises(TensorError, match="the loss in stage resnet/0 is nan"):
        stage.loss(MicrobatchId(1, earlier), INPUTS, {"labels": LABELS}, 12)
    task.is_broken = False
    stage.loss(MicrobatchId(1, earlier), INPUTS, {"labels": LABELS}, 12)
    assert stage.commit(1)


def test_forward_is_for_all_but_the_last_and_loss_for_the_last(chain: list[Stage]) -> None:
    with pytest.raises(ModelError, match="is the last one"):
        chain[2].forward(FIRST, INPUTS.new_zeros((1, *chain[2].plan.inputs.shape)))
    with pytest.raises(ModelError, match="is not the last one"):
        chain[0].loss(FIRST, INPUTS, {"labels": LABELS}, 4)
    with pytest.raises(ModelError, match="needs a task"):
        build_stage(helpers.config("resnet"), helpers.IMAGES, 0, None)
    with pytest.raises(ModelError, match="there is no stage 3"):
        build_stage(helpers.config("resnet", 3), helpers.IMAGES, 3, helpers.CrossEntropy())


def test_backward_needs_its_forward(chain: list[Stage]) -> None:
    output = chain[0].forward(FIRST, INPUTS)
    with pytest.raises(StaleError, match="no forward of microbatch 1 of step 1"):
        chain[0].backward(MicrobatchId(1, 1), output)
    chain[0].backward(FIRST, output)
    with pytest.raises(StaleError, match="no forward of microbatch 0 of step 1"):
        chain[0].backward(FIRST, output)


def test_a_repeated_forward_replaces(chain: list[Stage]) -> None:
    stage = chain[0]
    stage.forward(FIRST, INPUTS * 2)
    once = stage.statistics()
    output = stage.forward(FIRST, INPUTS)
    assert stage.statistics() == once
    assert once.stashed_microbatches == 1
    stage.backward(FIRST, output)
    fresh = helpers.stages("resnet", 3)[0]
    fresh.backward(FIRST, fresh.forward(FIRST, INPUTS))
    for mine, other in zip(stage.blocks.parameters(), fresh.blocks.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)


def test_a_microbatch_counts_once(whole: Stage) -> None:
    whole.loss(FIRST, INPUTS, {"labels": LABELS}, 8)
    with nothing_changes(whole), pytest.raises(StaleError, match="has counted microbatch 0 of step 1 already"):
        whole.loss(FIRST, INPUTS, {"labels": LABELS}, 8)


def test_commit_takes_the_pending_step_once(whole: Stage) -> None:
    with pytest.raises(StaleError, match="at version 0 cannot commit step 1: nothing is pending"):
        whole.commit(1)
    whole.loss(FIRST, INPUTS, {"labels": LABELS}, 4)
    assert repr(whole) == "<Stage resnet/0 of 1, version 0, pending step 1 (1 microbatches)>"
    with nothing_changes(whole), pytest.raises(StaleError, match="cannot commit step 2: step 1 is pending"):
        whole.commit(2)
    assert whole.commit(1) is True
    assert repr(whole) == "<Stage resnet/0 of 1, version 1>"
    with nothing_changes(whole):
        assert whole.commit(1) is False
    assert whole.pending is None
    assert all(parameter.grad is None for parameter in whole.blocks.parameters())
    with pytest.raises(StaleError, match="step 1 is over"):
        whole.loss(FIRST, INPUTS, {"labels": LABELS}, 4)


def test_commit_waits_for_every_gradient(chain: list[Stage]) -> None:
    output = chain[0].forward(FIRST, INPUTS)
    chain[0].forward(MicrobatchId(1, 1), INPUTS)
    chain[0].backward(FIRST, output)
    with nothing_changes(chain[0]), pytest.raises(StaleError, match="1 microbatches have no gradient yet"):
        chain[0].commit(1)


def test_the_next_step_waits_for_the_commit(chain: list[Stage]) -> None:
    output = chain[0].forward(FIRST, INPUTS)
    with nothing_changes(chain[0]), pytest.raises(StaleError, match="is at step 1, which is neither committed"):
        chain[0].forward(MicrobatchId(2, 0), INPUTS)
    chain[0].backward(FIRST, output)
    chain[0].commit(1)
    chain[0].forward(MicrobatchId(2, 0), INPUTS)


def test_a_dropped_step_leaves_no_trace_and_can_be_replayed(chain: list[Stage]) -> None:
    stage = chain[0]
    with nothing_changes(stage):
        output = stage.forward(FIRST, INPUTS)
        stage.forward(MicrobatchId(1, 1), INPUTS)
        stage.backward(FIRST, output)
        stage.drop_pending()
    with pytest.raises(StaleError, match="no forward"):
        stage.backward(MicrobatchId(1, 1), output)
    helpers.train(chain, helpers.IMAGES, 2)
    undisturbed = helpers.stages("resnet", 3)
    helpers.train(undisturbed, helpers.IMAGES, 2)
    for left, right in zip(chain, undisturbed, strict=True):
        assert torch.equal(left.flatten(), right.flatten())


def test_adopt_version_drops_what_is_pending(chain: list[Stage]) -> None:
    chain[0].forward(FIRST, INPUTS)
    chain[0].adopt_version(7)
    assert chain[0].version == 7
    assert chain[0].statistics().stashed_microbatches == 0
    with pytest.raises(StaleError, match="step 7 is over"):
        chain[0].forward(MicrobatchId(7, 0), INPUTS)
    chain[0].forward(MicrobatchId(8, 0), INPUTS)


def test_evaluation_changes_nothing_and_sees_running_statistics(whole: Stage) -> None:
    with nothing_changes(whole):
        result = whole.loss(FIRST, INPUTS, {"labels": LABELS}, 4, train=False)
    assert result.gradient is None
    alone = whole.loss(FIRST, INPUTS[:1], {"labels": LABELS[:1]}, 4, train=False)
    rest = whole.loss(FIRST, INPUTS[1:], {"labels": LABELS[1:]}, 4, train=False)
    assert alone.sums["loss"] + rest.sums["loss"] == pytest.approx(result.sums["loss"], rel=1e-5)


def test_flat_state_goes_there_and_back() -> None:
    one, other = (helpers.stages("resnet", 2)[0] for _ in range(2))
    output = one.forward(FIRST, INPUTS)
    one.backward(FIRST, output)
    one.commit(1)
    vector = one.flatten()
    assert vector.dtype == torch.float32
    assert vector.shape == (one.num_elements,)
    other.forward(FIRST, INPUTS)
    other.scatter([0], vector)
    assert torch.equal(other.flatten(), vector)
    other.drop_pending()  # The step that was under way goes; what was loaded stays.
    assert torch.equal(other.flatten(), vector)
    vector.zero_()
    assert not torch.equal(other.flatten(), vector)


def test_flat_state_that_does_not_fit(whole: Stage) -> None:
    vector = whole.flatten()
    with nothing_changes(whole):
        with pytest.raises(TensorError, match=rf"expected float32 \({whole.num_elements},\)"):
            whole.scatter([0], vector[1:])
        with pytest.raises(TensorError, match="float64"):
            whole.scatter([0], vector.double())
        with pytest.raises(TensorError, match="NaN"):
            whole.scatter([0], vector * torch.nan)


def test_running_statistics_come_behind_the_parameters(whole: Stage) -> None:
    kinds = [slot.is_parameter for slot in whole.layout]
    assert kinds == sorted(kinds, reverse=True)
    behind = {slot.name.rpartition(".")[2] for slot in whole.layout if not slot.is_parameter}
    assert behind == {"running_mean", "running_var"}
    assert sum(slot.size for slot in whole.layout if slot.is_parameter) == whole.num_parameters
    before = whole.flatten()[whole.num_parameters :]
    whole.loss(FIRST, INPUTS, {"labels": LABELS}, 4)
    assert not torch.equal(whole.flatten()[whole.num_parameters :], before)


def test_names_are_those_of_the_uncut_model() -> None:
    names = [slot.name for slot in helpers.stages("gpt", 3)[1].layout]
    whole = [slot.name for slot in helpers.stages("gpt", 1)[0].layout]
    assert "blocks.2.attention.inputs.weight" in names
    assert set(names) < set(whole)


def test_a_microbatch_too_small_for_batch_norm(whole: Stage) -> None:
    (stage,) = helpers.stages("resnet", 1, {"width": 2, "blocks": [1, 1, 1, 1]})
    with nothing_changes(stage), pytest.raises(TensorError, match="cannot compute this microbatch"):
        stage.loss(FIRST, INPUTS[:1], {"labels": LABELS[:1]}, 1)
