"""Stages that send learned codes: any cut is the uncut model with the same quantizers; steps are the stage's own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from distqat.config import RunConfig
from distqat.errors import ModelError, TensorError
from distqat.ids import MicrobatchId
from distqat.model.agreement import LossScale
from distqat.model.build import build_stage, build_whole
from distqat.model.quant.boundary import BoundaryQuantizer, attach, bounded
from distqat.model.quant.grid import Channels
from distqat.model.quant.rounding import rounded
from distqat.model.shapes import DataShape
from distqat.model.stage import CPU, Stage
from distqat.model.zoo.blocks import BlockSpec, HiddenShape, ModelPlan
from distqat.model.zoo.families import riders
from distqat.wire import tensors
from distqat.wire.codecs.learned import CodedTensor, Form
from distqat.wire_sections import LearnedCodes, WireOverride, WireSection
from tests.model import helpers
from tests.model.zoo import oracle

STEPS = 3

MODELS: dict[str, tuple[DataShape, dict[str, Any]]] = {
    **helpers.MODELS,
    "distilgpt2": (helpers.TOKENS, {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 8}),
}


def run(model: str, stages: int, codes: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    section = {"name": model, "stages": stages, "options": MODELS[model][1]}
    wire = {"activations": "learned", "learned": codes or {}, "overrides": sections.pop("overrides", [])}
    return RunConfig.model_validate({"model": section, "wire": wire, **sections})


def whole(config: RunConfig, model: str) -> Stage:
    return build_whole(config, MODELS[model][0], helpers.CrossEntropy())


def across(sent: torch.Tensor | CodedTensor) -> torch.Tensor:
    """Over a hop."""
    codec = sent.form.name if isinstance(sent, CodedTensor) else "none"
    headers, payload = tensors.encode({"hidden": sent}, codec)
    return tensors.decode(headers, memoryview(bytes(payload)))["hidden"]


def boundary_of(stage: Stage, what: str) -> torch.Tensor:
    """The step, offset or flag of its one quantizer."""
    (found,) = (tensor for name, tensor in helpers.tensors([stage]).items() if name.endswith(f"boundary_{what}"))
    return found


def same(one: Sequence[Stage], other: Sequence[Stage]) -> bool:
    found, expected = helpers.tensors(one), helpers.tensors(other)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mlp": ("mlp", {"bits": 8}, {}),
    "unsigned": ("resnet", {"bits": 4, "signed": False}, {}),
    "channels": ("resnet", {"bits": 3, "per": "channel"}, {"quant": {"method": "lsq"}}),
    "offsets": ("gpt", {"bits": 4, "per": "channel"}, {"quant": {"method": "lsq+"}}),
    "recomputed": ("gpt", {"bits": 4}, {"pipeline": {"recompute": ["gpt/*"]}}),
    "clipped": ("gpt", {"bits": 2}, {"optimizer": {"clip_norm": 0.05}}),
    "bf16": ("gpt", {"bits": 8}, {"train": {"precision": "bf16"}}),
    "fp16": ("mlp", {"bits": 5}, {"train": {"precision": "fp16"}}),
    "tied": (
        "distilgpt2",
        {"bits": 4, "per": "channel"},
        {"quant": {"method": "lsq+"}, "train": {"precision": "bf16"}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_cut_trains_the_numbers_of_one_process(name: str) -> None:
    model, codes, sections = CASES[name]
    stages = 2 if name == "mlp" else 4
    shape, config = MODELS[model][0], run(model, stages, codes, **sections)
    cut, alone = helpers.chain(config, shape), whole(config, model)
    # In fp16 some steps overflow and are skipped.
    scale = LossScale(2.0**24) if name == "fp16" else None
    assert helpers.train(cut, shape, STEPS, scale) == helpers.train([alone], shape, STEPS, scale)
    assert same(cut, [alone])
    steps = {name for name in helpers.tensors(cut) if name.endswith("boundary_step")}
    assert len(steps) == stages - 1


@pytest.mark.parametrize("model", ["resnet", "distilgpt2"])
def test_what_is_computed_again_is_rounded_as_before(model: str) -> None:
    codes, ends = {"bits": 3, "per": "channel"}, []
    for names in ([], ["*"]):
        config = run(model, 3, codes, quant={"method": "lsq+"}, pipeline={"recompute": names})
        chain = helpers.chain(config, MODELS[model][0])
        ends.append((chain, helpers.train(chain, MODELS[model][0], STEPS)))
    assert ends[0][1] == ends[1][1]
    assert same(ends[0][0], ends[1][0])


def test_another_cut_is_another_model() -> None:
    losses = [helpers.train([whole(run("gpt", stages), "gpt")], helpers.TOKENS, STEPS) for stages in (2, 3)]
    plain = helpers.train(helpers.stages("gpt", 2), helpers.TOKENS, STEPS)
    assert losses[0] != losses[1]
    assert plain not in losses
    assert losses[0] == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("train", [True, False])
def test_what_arrives_is_what_the_sender_goes_on_with(precision: str, train: bool) -> None:
    config = run("resnet", 2, {"bits": 3, "per": "channel"}, quant={"method": "lsq+"}, train={"precision": precision})
    stage = build_stage(config, helpers.IMAGES, 0, None)
    inputs, _ = helpers.batch(helpers.IMAGES, 1)
    for number in range(2):
        sent = stage.send(MicrobatchId(1, number), inputs, train)
        assert isinstance(sent, CodedTensor)
        again = stage.forward(MicrobatchId(1, number), inputs, train)
        arrived = across(sent)
        assert arrived.dtype == stage.plan.outputs.dtype
        assert torch.equal(arrived, again)
        assert torch.equal(torch.signbit(arrived), torch.signbit(again))
        assert not train or len(torch.unique(sent.codes)) == 8


def test_codes_leave_once_and_keep_their_step() -> None:
    stage = build_stage(run("mlp", 2), helpers.IMAGES, 0, None)
    inputs, _ = helpers.batch(helpers.IMAGES, 1)
    sent = stage.send(MicrobatchId(1, 0), inputs)
    assert isinstance(sent, CodedTensor)
    before, values = sent.step.clone(), sent.values()
    stage.backward(MicrobatchId(1, 0), torch.ones_like(values))
    stage.commit(1)
    assert torch.equal(sent.step, before)
    assert not torch.equal(boundary_of(stage, "step"), before)
    last = build_stage(run("mlp", 2), helpers.IMAGES, 1, helpers.CrossEntropy())
    assert isinstance(last.send(MicrobatchId(1, 0), values, train=False), torch.Tensor)


def test_a_learned_step_may_lose_a_sign() -> None:
    """Of a quiet microbatch: why signs that carry lengths are refused."""
    quantizer = BoundaryQuantizer(Form(2), None)
    quantizer(riders.put_on(3 * torch.randn(4, 20, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)))
    quantizer.eval()
    lengths = torch.tensor([20, 7])
    quiet = riders.put_on(torch.full((2, 20, 32), 0.05), lengths)
    assert torch.equal(riders.take_off(quiet)[1], lengths)
    assert not torch.equal(riders.take_off(quantizer(quiet))[1], lengths)


@pytest.mark.parametrize("codes", [LearnedCodes(), LearnedCodes(bits=2, signed=False)], ids=["signed", "unsigned"])
@pytest.mark.parametrize("has_offsets", [False, True])
def test_signs_that_carry_lengths_are_refused(codes: LearnedCodes, has_offsets: bool) -> None:
    blocks = tuple(
        BlockSpec(name, nn.Identity, 1.0, HiddenShape((4,), has_riders=name == "first")) for name in ("first", "head")
    )
    plan, ranges = ModelPlan("own", HiddenShape((4,)), blocks), [range(1), range(1, 2)]
    with pytest.raises(ModelError, match="wire: stage own/0 sends lengths as signs, which learned codes may lose"):
        bounded(plan, ranges, WireSection(activations="learned", learned=codes), has_offsets)
    others = WireSection(learned=codes, overrides=[WireOverride(stages="own/1", activations="learned")])
    assert bounded(plan, ranges, others, has_offsets).blocks == blocks


def test_wav2vec2_with_masks_is_refused_and_without_is_not() -> None:
    for name, family in ((name, oracle.FAMILIES[name]) for name in ("wav2vec2", "wav2vec2-masked")):
        config = oracle.run(family, 2).model_copy(update={"wire": WireSection(activations="learned")})
        with pytest.raises(ModelError, match="lengths as signs") if "masked" in name else nullcontext():
            build_stage(config, family.shape, 0, None)


def test_only_the_boundaries_that_learn_have_quantizers() -> None:
    overrides = [{"stages": "gpt/1", "activations": "int8"}]
    chain = helpers.chain(run("gpt", 3, overrides=overrides), helpers.TOKENS)
    assert [any("boundary" in slot.name for slot in stage.layout) for stage in chain] == [True, False, False]
    inputs, _ = helpers.batch(helpers.TOKENS, 1)
    hidden = chain[0].send(MicrobatchId(1, 0), inputs)
    assert isinstance(hidden, CodedTensor)
    assert isinstance(chain[1].send(MicrobatchId(1, 0), hidden.values()), torch.Tensor)


def test_a_joiner_goes_on_with_the_step_it_is_given() -> None:
    donor, joiner, idle = (build_stage(run("mlp", 2, {"bits": 4}), helpers.IMAGES, 0, None) for _ in range(3))
    assert torch.equal(donor.flatten(), joiner.flatten())
    inputs, _ = helpers.batch(helpers.IMAGES, 1)
    output = donor.forward(MicrobatchId(1, 0), inputs)
    donor.backward(MicrobatchId(1, 0), torch.ones_like(output))
    donor.commit(1)
    joiner.scatter([0], donor.gather([0]))
    idle.restore(donor.local_state())
    for stage in (joiner, idle):
        before = stage.flatten()
        stage.adopt_version(1)
        stage.forward(MicrobatchId(2, 0), 50 * inputs)
        assert torch.equal(stage.flatten(), before)


def test_a_dropped_first_step_begins_anew() -> None:
    one, other = (build_stage(run("mlp", 2), helpers.IMAGES, 0, None) for _ in range(2))
    inputs, _ = helpers.batch(helpers.IMAGES, 1)
    one.forward(MicrobatchId(1, 0), 9 * inputs)
    one.drop_pending()
    for stage in (one, other):
        stage.forward(MicrobatchId(1, 0), inputs)
    assert torch.equal(one.flatten(), other.flatten())


def test_gradients_are_those_of_lsq() -> None:
    quantizer = BoundaryQuantizer(Form(3, is_per_channel=True, has_offset=True), Channels(-1, 4))
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    above = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    torch.autograd.backward(quantizer(values), above)
    assert quantizer.offset is not None
    step, offset = (head.detach().clone().requires_grad_() for head in (quantizer.step, quantizer.offset))
    plain = values.detach().clone().requires_grad_()
    scale = (values[0].numel() / 4 * quantizer.grid.highest) ** -0.5
    torch.autograd.backward(rounded(plain, step, offset, quantizer.grid, quantizer.channels, scale), above)
    for one, other in ((values, plain), (quantizer.step, step), (quantizer.offset, offset)):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
        assert one.grad.abs().sum() > 0


def test_evaluations_before_any_training_are_rounded_too() -> None:
    stage = build_stage(run("mlp", 2, {"bits": 2}), helpers.IMAGES, 0, None)
    inputs, _ = helpers.batch(helpers.IMAGES, 1)
    sent = stage.send(MicrobatchId(1, 0), inputs, train=False)
    assert isinstance(sent, CodedTensor)
    assert len(torch.unique(sent.values())) <= 4
    assert float(boundary_of(stage, "initialised")) == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("train", [True, False])
def test_what_is_not_finite_is_refused_and_leaves_no_trace(number: float, train: bool) -> None:
    stage = build_stage(run("mlp", 2), helpers.IMAGES, 0, None)
    inputs, _ = helpers.batch(helpers.IMAGES, 1)
    with torch.no_grad():
        bias = next(p for name, p in stage.blocks[-1].named_parameters() if name.endswith("bias"))
        bias[0] = number
    before = stage.flatten()
    with pytest.raises(TensorError, match="stage mlp/0 cannot compute this microbatch: what leaves it is NaN or inf"):
        stage.send(MicrobatchId(1, 0), inputs, train)
    assert torch.equal(stage.flatten().nan_to_num(), before.nan_to_num())


def test_a_block_that_calls_whatever_it_has_does_not_call_the_quantizer() -> None:
    block = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    inputs = torch.randn(5, 4)
    plain = block(inputs)
    quantizer = attach(block, Form(2), HiddenShape((3,)), CPU)
    assert torch.equal(block(inputs), plain)
    assert {name for name, _ in block.named_parameters()} == {"1.weight", "1.bias", "boundary_step"}
    assert not torch.equal(quantizer(plain), plain)


def test_its_step_learns_as_other_steps_do() -> None:
    """Slowly, and it does not decay."""
    moved = []
    for rate, decay in ((1.0, 0.0), (0.1, 0.5)):
        optimizer = {"name": "sgd", "learning_rate": 1e-3, "momentum": 0.0, "weight_decay": decay}
        config = run("mlp", 2, optimizer=optimizer, quant={"step_rate": rate})
        stage = build_stage(config, helpers.IMAGES, 0, None)
        inputs, _ = helpers.batch(helpers.IMAGES, 1)
        output = stage.forward(MicrobatchId(1, 0), inputs)
        before = boundary_of(stage, "step")
        stage.backward(MicrobatchId(1, 0), torch.ones_like(output))
        stage.commit(1)
        moved.append(float(boundary_of(stage, "step") - before))
    assert moved[0] != 0
    assert moved[1] == pytest.approx(moved[0] / 10, rel=1e-2)
