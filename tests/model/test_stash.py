"""What waits for gradients: measured, and little of it where forwards are computed again, without changing a bit."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distqat.ids import MicrobatchId
from distqat.model.stage import Stage
from distqat.model.stash import MAX_SHAPES, Stash
from distqat.sections import PipelineSection, Precision
from tests.model import helpers
from tests.model.test_cut import assert_same

FIRST = MicrobatchId(1, 0)


def chain(model: str, number: int, recompute: list[str], precision: Precision = "fp32") -> list[Stage]:
    run = helpers.config(model, number, precision=precision)
    run = run.model_copy(update={"pipeline": PipelineSection(recompute=recompute)})
    return helpers.chain(run, helpers.MODELS[model][0])


@pytest.mark.parametrize(
    ("model", "precision"), [("mlp", "fp32"), ("resnet", "fp32"), ("gpt", "fp32"), ("resnet", "fp16"), ("gpt", "bf16")]
)
def test_recomputing_changes_no_bit(model: str, precision: Precision) -> None:
    shape = helpers.MODELS[model][0]
    keeping, again = chain(model, 3, [], precision), chain(model, 3, ["*/0", f"{model}/[1-9]"], precision)
    assert [stage.training.recompute for stage in keeping] == [False] * 3
    assert [stage.training.recompute for stage in again] == [True] * 3
    assert helpers.train(again, shape, 4) == helpers.train(keeping, shape, 4)
    assert_same(helpers.tensors(again), helpers.tensors(keeping))


@pytest.mark.parametrize("model", helpers.MODELS)
def test_recomputing_keeps_less(model: str) -> None:
    shape = helpers.MODELS[model][0]
    chains = chain(model, 2, []), chain(model, 2, ["*"])
    for own in chains:
        helpers.train(own, shape, 1)
    keeping, again = (own[0].statistics() for own in chains)
    inputs = helpers.batch(shape, 1)[0]
    assert again.most_stashed_bytes == inputs.nbytes
    assert keeping.most_stashed_bytes > (1 if model == "mlp" else 3) * again.most_stashed_bytes
    assert keeping.stashed_bytes == again.stashed_bytes == 0
    assert chains[0][1].statistics().most_stashed_bytes == 0  # The last stage never waits.


def test_only_the_stages_that_are_named_recompute() -> None:
    assert [stage.training.recompute for stage in chain("gpt", 3, ["gpt/1", "mlp/*"])] == [False, True, False]


def test_the_bytes_are_those_that_autograd_keeps() -> None:
    """By hand: of a layer `relu(linear(x))` input and output are kept, and of the next one the output only."""
    stage = helpers.stages("mlp", 3)[0]
    assert [type(block).__name__ for block in stage.blocks] == ["Layer"] * len(stage.blocks)
    inputs, _ = helpers.batch(helpers.IMAGES, 1, 4)
    stage.forward(FIRST, inputs)
    one = stage.statistics()
    assert one.stashed_bytes == one.most_stashed_bytes == 4 * 4 * (64 + 24 * len(stage.blocks))
    stage.forward(MicrobatchId(1, 1), inputs)
    assert stage.statistics().stashed_bytes == 2 * one.stashed_bytes
    stage.forward(MicrobatchId(1, 2), inputs[:1])
    assert stage.statistics().stashed_bytes == 2 * one.stashed_bytes + one.stashed_bytes // 4
    output = stage.forward(FIRST, inputs)
    stage.backward(FIRST, output)
    held = stage.statistics()
    assert held.stashed_bytes == one.stashed_bytes + one.stashed_bytes // 4
    assert held.most_stashed_bytes == 2 * one.stashed_bytes + one.stashed_bytes // 4
    stage.drop_pending()
    assert stage.statistics() == replace(held, stashed_microbatches=0, stashed_bytes=0, pending_microbatches=0)


class Marker:
    """Lives as long as the piece of graph that it hangs on."""

    def __call__(self, *gradients: object) -> None:
        pass


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_goes_with_the_gradient(recompute: bool) -> None:
    """At once, and not when the garbage collector comes; also at the first microbatch, which is measured."""
    stage = chain("mlp", 2, ["*"] if recompute else [])[0]
    alive: list[weakref.ref[Marker]] = []

    def mark(module: nn.Module, inputs: object, output: Tensor) -> None:
        marker = Marker()
        assert output.grad_fn is not None
        output.grad_fn.register_hook(marker)
        alive.append(weakref.ref(marker))

    stage.blocks[0].register_forward_hook(mark)
    inputs, _ = helpers.batch(helpers.IMAGES, 1, 4)
    gc.disable()
    try:
        for index in range(2):
            microbatch = MicrobatchId(1, index)
            output = stage.forward(microbatch, inputs)
            assert (alive[-1]() is None) == recompute
            stage.backward(microbatch, output)
            assert [own() for own in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_running_statistics_count_a_recomputed_microbatch_once() -> None:
    first = chain("resnet", 2, ["*"])[0]
    inputs, _ = helpers.batch(helpers.IMAGES, 1, 4)
    output = first.forward(FIRST, inputs)
    after = first.flatten()[first.num_parameters :]
    other = first.forward(MicrobatchId(1, 1), inputs * 2)
    first.backward(FIRST, output)
    first.backward(MicrobatchId(1, 1), other)
    assert not torch.equal(first.flatten()[first.num_parameters :], after)
    again = chain("resnet", 2, [])[0]
    for index, factor in enumerate((1, 2)):
        again.backward(MicrobatchId(1, index), again.forward(MicrobatchId(1, index), inputs * factor))
    assert torch.equal(first.flatten(), again.flatten())


def test_shared_memory_counts_once_and_parameters_never() -> None:
    linear = nn.Linear(8, 8)
    stash = Stash(False, linear.parameters)
    entered = torch.randn(2, 8, requires_grad=True)

    def forward(hidden: Tensor) -> Tensor:
        product: Tensor = linear(hidden) * hidden * hidden.view(16).view(2, 8)
        return product

    stash.compute(FIRST, entered, forward)
    # Kept: the input, the layer's output, the first product, and the second, which leaves.
    assert stash.nbytes == 4 * 2 * 8 * 4
    assert repr(stash) == "<Stash of 1 microbatches, 256 bytes, 256 at most>"


def test_shapes_that_are_remembered_are_bounded() -> None:
    stash = Stash(False, list)
    for samples in range(1, 3 * MAX_SHAPES):
        stash.compute(FIRST, torch.zeros(samples, 2, requires_grad=True), torch.exp)
        assert stash.nbytes == 2 * samples * 8
        assert len(stash) == 1
    assert len(stash._measured) <= MAX_SHAPES


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_microbatches_share_the_weights_that_were_cast(precision: Precision) -> None:
    """Else each one in flight would keep a copy of its own: 2 bytes a parameter."""
    run = helpers.config("mlp", 2, {"hidden": 256, "depth": 4}, precision)
    first = helpers.chain(run, helpers.IMAGES)[0]
    inputs, _ = helpers.batch(helpers.IMAGES, 1, 2)
    output = first.forward(FIRST, inputs)
    assert first.statistics().stashed_bytes < first.num_parameters // 10
    # An evaluation shares them too, and takes nothing of the gradients away, nor does one between two steps.
    first.forward(FIRST, inputs, train=False)
    first.backward(FIRST, output)
    gradients = [parameter.grad for parameter in first.blocks.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
    first.commit(1)
    first.forward(FIRST, inputs, train=False)
    first.backward(MicrobatchId(2, 0), first.forward(MicrobatchId(2, 0), inputs))
    assert all(parameter.grad is not None for parameter in first.blocks.parameters())


@pytest.mark.parametrize("between", ["commit", "load"])
def test_weights_are_cast_anew_when_they_have_changed(between: str) -> None:
    first, last = chain("mlp", 2, [], "bf16")
    inputs, labels = helpers.batch(helpers.IMAGES, 1)
    before = first.forward(FIRST, inputs, train=False)
    if between == "commit":
        helpers.train_step([first, last], 1, inputs, labels)
    else:
        first.scatter([0], first.flatten() * 2)
    assert not torch.equal(first.forward(FIRST, inputs, train=False), before)
