"""A head that is tied to its embedding, cut anywhere, trains as in the uncut model of `transformers`; dropout on."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distqat.config import RunConfig
from distqat.errors import ModelError, StaleError, TensorError
from distqat.ids import MicrobatchId
from distqat.model import zoo
from distqat.model.agreement import LossScale
from distqat.model.build import build_stage
from distqat.model.quant.plan import quantised
from distqat.model.slice import Slice
from distqat.model.stage import CPU, Stage
from distqat.model.zoo.blocks import BlockSpec, HiddenShape, ModelPlan, slice_of
from distqat.quant_sections import QuantSection
from tests.model import helpers
from tests.model.test_cut import assert_same
from tests.model.zoo import oracle
from tests.model.zoo.oracle import Family

STEPS = 3
CLIP = 0.1
CUTS = (1, 2, 3, 5)

FAMILIES = {
    name: replace(oracle.FAMILIES[name], options={**oracle.FAMILIES[name].options, "tie_word_embeddings": True})
    for name in ("gpt2", "gpt-neo", "llama")
}
GPT2 = FAMILIES["gpt2"]
TIED = "blocks.0.wte.weight"


def chain(family: Family, stages: int, where: str = "", precision: str = "fp32", **optimizer: Any) -> list[Stage]:
    run = oracle.run(family, stages, where, {} if where else None, precision, **optimizer)
    return [build_stage(run, family.shape, index, family.task) for index in range(stages)]


def by_their_names(family: Family, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return oracle.names(oracle.run(family, 1), family.shape, found)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_cut_is_the_librarys_uncut_model(name: str, tmp_path: Path) -> None:
    """A batch in one microbatch, clipped."""
    family = FAMILIES[name]
    model = oracle.whole(family)
    where = oracle.save(model, tmp_path)
    drives = [helpers.Drive(chain(family, number, where, clip_norm=CLIP)) for number in CUTS]
    plain = oracle.Oracle(family, model)
    for step in range(1, STEPS + 1):
        inputs, labels = oracle.batch(family.shape, step)
        loss = plain.compute(inputs, labels, 1)
        for drive in drives:
            assert drive.compute(step, inputs, labels, 1) == loss
            assert_same(by_their_names(family, oracle.gradients(drive.chain)), plain.gradients())
            drive.conclude(step)
        # The tensor that is there twice counts once.
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in plain.gradients().values()))
        (factor,) = {drive.factors[-1] for drive in drives}
        assert factor == pytest.approx(CLIP / norm, rel=1e-4)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
        plain.apply()
        for drive in drives:
            assert_same(by_their_names(family, helpers.tensors(drive.chain)), parameters(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_microbatches_are_added_up_at_each_end_before_the_ends_are(name: str, tmp_path: Path) -> None:
    """Autograd adds both ends for each microbatch, which differs in the last bits; over the wire they go once."""
    family = FAMILIES[name]
    model, apart = oracle.whole(family), oracle.whole(family)
    where = oracle.save(model, tmp_path)
    drives = [helpers.Drive(chain(family, number, where)) for number in CUTS]
    inputs, labels = oracle.batch(family.shape, 1)
    oracle.Oracle(family, model).compute(inputs, labels)
    lent = apart.get_input_embeddings().weight
    borrowed = nn.Parameter(lent.detach())
    apart.get_output_embeddings().weight = borrowed
    plain = oracle.Oracle(family, apart)
    loss = plain.compute(inputs, labels)
    assert lent.grad is not None
    assert borrowed.grad is not None
    lent.grad += borrowed.grad
    del apart.get_output_embeddings().weight
    for drive in drives:
        assert drive.compute(1, inputs, labels) == loss
        ours = by_their_names(family, oracle.gradients(drive.chain))
        assert_same(ours, plain.gradients())
        for key, gradient in oracle.Oracle(family, model).gradients().items():
            torch.testing.assert_close(ours[key], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cut_changes_nothing_in_low_precision(name: str, precision: str) -> None:
    family = FAMILIES[name]
    ends, losses = [], []
    for number in (1, 3):
        drive = helpers.Drive(
            chain(family, number, precision=precision, clip_norm=CLIP), LossScale(64.0) if precision == "fp16" else None
        )
        losses.append([drive.step(step, *oracle.batch(family.shape, step)) for step in (1, 2)])
        ends.append(helpers.tensors(drive.chain))
        assert all(factor > 0 for factor in drive.factors)
    assert losses[0] == losses[1]
    assert_same(ends[0], ends[1])


def test_an_overflow_at_one_end_skips_the_step_at_both() -> None:
    drive = helpers.Drive(chain(GPT2, 2, precision="fp16"), LossScale(1024.0))
    before = helpers.tensors(drive.chain)
    drive.compute(1, *oracle.batch(GPT2.shape, 1))
    lost = drive.chain[-1].tie.give_back()
    lost[0, 0] = math.inf
    drive.chain[0].tie.take_back(lost, may_overflow=True)
    drive.conclude(1)
    assert drive.factors == [0.0]
    assert_same(helpers.tensors(drive.chain), before)


def test_an_evaluation_is_the_librarys(tmp_path: Path) -> None:
    model = oracle.whole(GPT2).eval()
    where = oracle.save(model, tmp_path)
    inputs, _ = oracle.batch(GPT2.shape, 1)
    with torch.no_grad():
        expected = GPT2.call(model, inputs)
    (whole,) = chain(GPT2, 1, where)
    assert torch.equal(whole.forward(MicrobatchId(1, 0), inputs, train=False), expected)
    first, last = chain(GPT2, 2, where)
    hidden = first.forward(MicrobatchId(1, 0), inputs, train=False)
    with pytest.raises(StaleError, match="was not lent"):
        last.forward(MicrobatchId(1, 0), hidden, train=False)
    last.tie.borrow(first.tie.lend())
    assert torch.equal(last.forward(MicrobatchId(1, 0), hidden, train=False), expected)


def test_a_tied_head_is_not_quantised_and_all_else_is_at_every_cut() -> None:
    ends = []
    for number in (1, 3):
        run = oracle.run(GPT2, number)
        settings = run.model_dump() | {"quant": {"method": "lsq"}}
        drive = helpers.Drive(helpers.chain(RunConfig.model_validate(settings), GPT2.shape))
        assert drive.step(1, *oracle.batch(GPT2.shape, 1)) > 0
        ends.append(helpers.tensors(drive.chain))
    assert_same(ends[0], ends[1])
    steps = [name for name in ends[0] if name.startswith(("blocks.3.", "blocks.4.")) and "quant" in name]
    assert steps
    assert not any(name.startswith("blocks.4.") for name in steps)


@pytest.mark.parametrize("rule", [{"match": "head*"}, {"match": "head.lm_head"}, {"class": "Linear"}])
def test_rules_for_a_tied_head_say_why_not_and_may_exclude_it(
    rule: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    plan = zoo.plan(oracle.run(GPT2, 1).model, GPT2.shape)
    wanted = {"method": "lsq", "rules": [{**rule, "weights": {"bits": 4}}]}
    why = r"matches no layer of model distilgpt2 but head.lm_head: its head is tied and has no weights of its own"
    with pytest.raises(ModelError, match=f"{why}; let the rule say exclude: true, .*tie_word_embeddings to false"):
        quantised(plan, QuantSection.model_validate(wanted))
    quantised(plan, QuantSection.model_validate({**wanted, "strict": False}))
    assert "its head is tied" in caplog.text
    excluded = {"method": "lsq", "rules": [{**rule, "exclude": True}]}
    quantised(plan, QuantSection.model_validate(excluded))
    for other in ({"match": "heads*", "exclude": True}, {"class": "Conv2d", "exclude": True}):
        with pytest.raises(ModelError, match=r"matches no layer of model distilgpt2; there are: layer0"):
            quantised(plan, QuantSection.model_validate({"method": "lsq", "rules": [other]}))


def test_the_tensor_is_there_once() -> None:
    """For rounds, optimizers and checkpoints: in the first stage."""
    whole, cut = chain(GPT2, 1), chain(GPT2, 3)
    assert sum(stage.num_parameters for stage in cut) == whole[0].num_parameters
    names = [slot.name for stage in cut for slot in stage.layout]
    assert [name for name in names if "wte" in name or "lm_head" in name] == ["blocks.0.wte.weight"]
    assert not any("lm_head" in name for name in cut[-1].local_state().tensors)
    assert whole[0].tie.held()[0].data_ptr() == whole[0].blocks[0].get_parameter("wte.weight").data_ptr()


def test_every_change_of_the_tensor_is_a_new_edition() -> None:
    drive = helpers.Drive(chain(GPT2, 2))
    first = drive.chain[0]
    editions = [first.tie.edition]

    def changed() -> bool:
        editions.append(first.tie.edition)
        return editions[-1] > editions[-2]

    drive.compute(1, *oracle.batch(GPT2.shape, 1))
    assert not changed()
    drive.conclude(1)
    assert changed()
    state = first.local_state()
    first.scatter([0], first.gather([0]))
    assert changed()
    first.restore(state)
    assert changed()


def test_what_leaves_the_tensor_as_it_was_is_no_new_edition() -> None:
    """A step that overflows, one that is dropped, and a round on other fragments."""
    run = oracle.run(GPT2, 2, precision="fp16")
    run = run.model_copy(update={"sync": run.sync.model_copy(update={"fragments": 2})})
    drive = helpers.Drive([build_stage(run, GPT2.shape, index, GPT2.task) for index in (0, 1)], LossScale(2.0**30))
    first = drive.chain[0]
    before, edition = first.tie.lend(), first.tie.edition
    drive.step(1, *oracle.batch(GPT2.shape, 1))
    assert drive.factors == [0.0]
    drive.compute(2, *oracle.batch(GPT2.shape, 2))
    for stage in drive.chain:
        stage.drop_pending()
    names = [[first.layout[slot].name for slot in fragment.slots] for fragment in first.fragments]
    (home,) = (index for index, own in enumerate(names) if TIED in own)
    first.scatter([1 - home], first.gather([1 - home]) * 2)
    assert first.tie.edition == edition
    first.scatter([home], first.gather([home]) * 2)
    assert first.tie.edition == edition + 1
    assert torch.equal(first.tie.lend(), 2 * before)


def test_a_block_that_lends_what_it_has_not_is_refused() -> None:
    """Where it is somebody's own; in the stage that would lend it, and in no other."""
    blocks = [BlockSpec(name, partial(nn.Linear, 4, 4), 1.0, HiddenShape((4,))) for name in ("first", "head")]
    for lends in ("tokens.weight", "scale", "forward"):
        plan = ModelPlan("own", HiddenShape((4,)), (replace(blocks[0], lends=lends), blocks[1]))
        with pytest.raises(ModelError, match=f"block first of model own has no parameter '{lends}' to lend"):
            Slice(slice_of(plan, [range(1), range(1, 2)], 0), 1, "fp32", CPU)
        with pytest.raises(ModelError, match="block head of model own borrows, but in 0 layers"):
            Slice(slice_of(plan, [range(1), range(1, 2)], 1), 1, "fp32", CPU)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    first, last = chain(GPT2, 2)
    lent = first.tie.lend()
    last.tie.borrow(lent)
    for bad in (lent[1:], lent.double(), torch.full_like(lent, math.nan)):
        with pytest.raises(TensorError, match="tied tensor of stage distilgpt2/1"):
            last.tie.borrow(bad)
        with pytest.raises(TensorError, match="tied gradient for stage distilgpt2/0"):
            first.tie.take_back(bad, may_overflow=False)
    assert torch.equal(last.tie.held()[0], lent)
    inputs, labels = oracle.batch(GPT2.shape, 1)
    hidden = first.forward(MicrobatchId(1, 0), inputs)
    gradient = last.loss(MicrobatchId(1, 0), hidden, {"labels": labels}, len(inputs)).gradient
    with pytest.raises(StaleError, match="while a step goes on"):
        last.tie.borrow(lent)
    assert gradient is not None
    first.backward(MicrobatchId(1, 0), gradient)
    for conclude in (first.square_norms, first.commit):
        with pytest.raises(StaleError, match="lacks the last stage's gradient"):
            conclude(1)


def test_a_message_must_have_room_for_it() -> None:
    family = replace(GPT2, shape=replace(GPT2.shape, classes=40000))
    run = oracle.run(family, 2)
    wire = run.wire.model_copy(update={"max_message": 1 << 20})
    small = run.model_copy(update={"wire": wire})
    for index in (0, 1):
        with pytest.raises(ModelError, match=r"set wire.max_message to at least 5120000, or .*tie_word_embeddings"):
            build_stage(small, family.shape, index, family.task)
    build_stage(run, family.shape, 0, family.task)
