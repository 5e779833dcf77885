"""A cut model is the uncut model, bit for bit; and the uncut model is what plain torch makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distqat.ids import MicrobatchId
from distqat.model import rng, zoo
from distqat.model.stage import Stage
from distqat.model.zoo.blocks import BlockSpec, build
from tests.model import helpers

STEPS = 12


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bit for bit, by name."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


@pytest.mark.parametrize("model", helpers.MODELS)
def test_every_cut_trains_the_same_numbers(model: str) -> None:
    shape = helpers.MODELS[model][0]
    whole = helpers.stages(model, 1)
    losses = helpers.train(whole, shape, STEPS)
    for number in (2, 3, 5):
        chain = helpers.stages(model, number)
        if number == 3:
            assert_same(helpers.tensors(chain), helpers.tensors(helpers.stages(model, 1)))
        assert helpers.train(chain, shape, STEPS) == losses
        assert_same(helpers.tensors(chain), helpers.tensors(whole))


def test_bottlenecks_are_cut_as_well() -> None:
    def chain(number: int) -> list[Stage]:
        return helpers.chain(helpers.config("resnet50", number, {"width": 1}), helpers.IMAGES)

    whole, cut = chain(1), chain(5)
    assert helpers.train(cut, helpers.IMAGES, 3) == helpers.train(whole, helpers.IMAGES, 3)
    assert_same(helpers.tensors(cut), helpers.tensors(whole))


@pytest.mark.parametrize(
    ("model", "optimizer"), [("mlp", "sgd"), ("mlp", "adamw"), ("resnet", "adamw"), ("gpt", "adamw")]
)
def test_plain_torch_agrees(model: str, optimizer: str) -> None:
    shape = helpers.MODELS[model][0]
    chain = helpers.stages(model, 2, name=optimizer, learning_rate=1e-2)
    losses = helpers.train(chain, shape, 10)

    run = helpers.config(model)
    specs = zoo.plan(run.model, shape).blocks
    whole = torch.nn.Sequential(*(build(spec, run.run.seed, model, number) for number, spec in enumerate(specs)))
    plain: torch.optim.Optimizer
    if optimizer == "adamw":
        plain = torch.optim.AdamW(whole.parameters(), 1e-2, weight_decay=0.01, fused=True)
    else:
        plain = torch.optim.SGD(whole.parameters(), 1e-2, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True)
    expected = []
    for step in range(1, 11):
        inputs, labels = helpers.batch(shape, step)
        total = 0.0
        for index, (part, target) in enumerate(helpers.microbatches(inputs, labels)):
            for number, block in enumerate(whole):
                rng.seed_dropouts(rng.dropouts(block), run.run.seed, "dropout", step, index, number)
            loss, sums = helpers.CrossEntropy().loss(whole(part), {"labels": target})
            torch.autograd.backward(loss / len(inputs))
            total += sums["loss"]
        expected.append(total / len(inputs))
        plain.step()
        plain.zero_grad()
    assert losses == expected
    named = {f"blocks.{name}": tensor for name, tensor in (*whole.named_parameters(), *whole.named_buffers())}
    assert_same(helpers.tensors(chain), {name: tensor.detach() for name, tensor in named.items()})


@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_microbatches_add_up_to_one_big_batch(model: str) -> None:
    shape, options = helpers.MODELS[model]
    options = {name: value for name, value in options.items() if name != "dropout"}
    inputs, labels = helpers.batch(shape, 1)
    ends = []
    for number in (1, helpers.MICROBATCHES):
        chain = helpers.stages(model, 2, options, name="sgd", learning_rate=0.1)
        for step in range(1, 6):
            helpers.train_step(chain, step, inputs, labels, number)
        ends.append(helpers.tensors(chain))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", helpers.MODELS)
def test_unequal_microbatches_weigh_by_samples(model: str) -> None:
    shape = helpers.MODELS[model][0]
    (whole,) = helpers.stages(model, 1)
    inputs, labels = helpers.batch(shape, 1, 5)
    for index, (begin, end) in enumerate(((0, 3), (3, 5))):
        part = MicrobatchId(1, index)
        result = whole.loss(part, inputs[begin:end], {"labels": labels[begin:end]}, batch_samples=5)
        assert result.sums["samples"] == end - begin
    assert whole.pending is not None
    assert whole.pending.microbatches == {0, 1}


def test_dropout_depends_on_step_and_microbatch_only() -> None:
    shape = helpers.TOKENS
    inputs, _ = helpers.batch(shape, 1, 4)
    first = helpers.stages("gpt", 2)[0]
    outputs = [first.forward(MicrobatchId(1, index), inputs) for index in (0, 1)]
    assert not torch.equal(outputs[0], outputs[1])
    torch.manual_seed(99)  # The process's own generator has no say.
    again = helpers.stages("gpt", 2)[0]
    assert torch.equal(again.forward(MicrobatchId(1, 1), inputs), outputs[1])
    first.drop_pending()
    assert not torch.equal(first.forward(MicrobatchId(2, 0), inputs), outputs[0])
    evaluated = [first.forward(MicrobatchId(3, index), inputs, train=False) for index in (0, 1)]
    assert torch.equal(evaluated[0], evaluated[1])


@pytest.mark.parametrize("model", helpers.MODELS)
def test_only_the_own_slice_is_built(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    def counting(spec: BlockSpec, seed: int, name: str, index: int) -> torch.nn.Module:
        built.append(index)
        return build(spec, seed, name, index)

    monkeypatch.setattr("distqat.model.zoo.blocks.build", counting)
    whole = helpers.stages(model, 1)[0]
    assert built == list(range(len(whole.blocks)))
    built.clear()
    chain = helpers.stages(model, 3)
    assert built == list(range(len(whole.blocks)))
    assert sum(stage.num_parameters for stage in chain) == whole.num_parameters
    assert sum(stage.num_elements for stage in chain) == whole.num_elements
    for stage in chain:
        assert sum(parameter.numel() for parameter in stage.blocks.parameters()) == stage.num_parameters
        assert 0 < stage.num_parameters < whole.num_parameters
