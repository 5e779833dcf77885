"""Quantised stages: any cut is the uncut model, bit for bit; steps are parameters of the stage; rules see all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distqat.config import RunConfig
from distqat.errors import ModelError
from distqat.ids import MicrobatchId
from distqat.model import zoo
from distqat.model.build import build_stage
from distqat.model.quant.grid import Grid
from distqat.model.quant.layers import QuantisedLayer
from distqat.model.quant.plan import quantised
from distqat.model.shapes import DataShape
from distqat.model.stage import CPU, Stage
from distqat.model.zoo.blocks import BlockSpec, HiddenShape, ModelPlan
from distqat.quant_sections import QuantSection
from tests.model import helpers

STEPS = 3
METHODS = ("lsq", "lsq+", "minmax", "percentile")
CHANNELS = {"weights": {"bits": 3, "per": "channel"}, "activations": {"bits": 4, "per": "channel"}}


def run(model: str, stages: int, quant: dict[str, Any], precision: str = "fp32", **sections: Any) -> RunConfig:
    section = {"name": model, "stages": stages, "options": helpers.MODELS[model][1]}
    values = {"model": section, "quant": quant, "train": {"precision": precision}, **sections}
    return RunConfig.model_validate(values)


def chain(model: str, stages: int, quant: dict[str, Any], **sections: Any) -> list[Stage]:
    return helpers.chain(run(model, stages, quant, **sections), helpers.MODELS[model][0])


def assert_cuts_are_equal(model: str, quant: dict[str, Any], **sections: Any) -> None:
    shape = helpers.MODELS[model][0]
    whole = chain(model, 1, quant, **sections)
    losses = helpers.train(whole, shape, STEPS)
    expected = helpers.tensors(whole)
    for number in (2, 5):
        cut = chain(model, number, quant, **sections)
        assert helpers.train(cut, shape, STEPS) == losses
        found = helpers.tensors(cut)
        assert found.keys() == expected.keys()
        assert not [name for name in found if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize(
    ("model", "method"), [("mlp", "minmax"), ("resnet", "percentile"), ("resnet", "lsq"), ("gpt", "lsq+")]
)
def test_every_cut_trains_the_same_numbers(model: str, method: str) -> None:
    assert_cuts_are_equal(model, {"method": method, "weights": {"bits": 4}, "activations": {"bits": 4}})


@pytest.mark.parametrize("model", ["resnet", "gpt"])
def test_channels_are_cut_as_well(model: str) -> None:
    assert_cuts_are_equal(model, {"method": "lsq", **CHANNELS})


BOUNDED = {"slice_bits": 2, "accumulator_length": 12, "accumulator_bits": 5}


@pytest.mark.parametrize("model", ["resnet", "gpt"])
def test_hardware_is_cut_as_well_and_changes_what_is_learned(model: str) -> None:
    quant = {"method": "lsq", "weights": {"bits": 4, "per": "channel"}, "activations": {"bits": 4}}
    assert_cuts_are_equal(model, {**quant, **BOUNDED})
    shape = helpers.MODELS[model][0]
    losses = [helpers.train(chain(model, 1, {**quant, **more}), shape, STEPS) for more in (BOUNDED, {})]
    assert losses[0] != losses[1]


def test_hardware_trains_in_low_precision() -> None:
    assert_cuts_are_equal("gpt", {"method": "lsq+", **BOUNDED}, precision="bf16")


def test_hardware_needs_codes_of_both_sides() -> None:
    quant = {"method": "lsq", "activations": {"bits": 0}, "accumulator_bits": 9}
    with pytest.raises(ModelError, match=r"the activations of layer layer0\S* are not quantised; give them bits"):
        build_stage(run("mlp", 1, quant), helpers.IMAGES, 0, helpers.CrossEntropy(), CPU)
    free = {**quant, "rules": [{"match": "*", "accumulator_bits": 0}]}
    assert build_stage(run("mlp", 1, free), helpers.IMAGES, 0, helpers.CrossEntropy(), CPU)


def test_low_precision_is_cut_as_well() -> None:
    assert_cuts_are_equal("gpt", {"method": "lsq+"}, precision="bf16", optimizer={"clip_norm": 1.0})


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_that_is_computed_again_is_the_first_one(method: str) -> None:
    shape = helpers.MODELS["resnet"][0]
    plain, again = (
        chain("resnet", 3, {"method": method}, pipeline={"recompute": globs}) for globs in ([], ["resnet/*"])
    )
    assert helpers.train(again, shape, STEPS) == helpers.train(plain, shape, STEPS)


def test_off_changes_nothing() -> None:
    off, plain = chain("mlp", 2, {"method": "off"}), helpers.stages("mlp", 2)
    losses = helpers.train(plain, helpers.IMAGES, 3)
    assert helpers.train(off, helpers.IMAGES, 3) == losses
    assert not any(isinstance(module, QuantisedLayer) for stage in off for module in stage.blocks.modules())
    on = chain("mlp", 2, {"method": "lsq"})
    assert helpers.train(on, helpers.IMAGES, 3) != losses


def steps_of(stage: Stage) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in helpers.tensors([stage]).items() if name.endswith((".step", ".offset"))}


def test_siblings_are_built_alike_and_a_joiner_goes_on_with_the_steps_it_is_given() -> None:
    donor, joiner = (chain("mlp", 1, {"method": "lsq+"})[0] for _ in range(2))
    assert torch.equal(donor.flatten(), joiner.flatten())
    inputs, labels = helpers.batch(helpers.IMAGES, 1)
    helpers.train_step([donor], 1, inputs, labels)
    flags = [name for name in helpers.tensors([donor]) if name.endswith("initialised")]
    assert flags
    assert all(helpers.tensors([donor])[name] == 1 for name in flags)
    joiner.scatter([0], donor.gather([0]))
    joiner.restore(donor.local_state())
    given = steps_of(joiner)
    joiner.forward(MicrobatchId(2, 0), 50 * inputs, train=False)
    joiner.loss(MicrobatchId(2, 0), 50 * inputs, {"labels": labels}, len(inputs))
    assert steps_of(joiner).keys() == given.keys()
    assert all(torch.equal(steps_of(joiner)[name], tensor) for name, tensor in given.items())


def test_a_dropped_first_step_begins_anew_and_equally() -> None:
    inputs, labels = helpers.batch(helpers.IMAGES, 1)
    one, other = (chain("mlp", 1, {"method": "lsq"})[0] for _ in range(2))
    one.loss(MicrobatchId(1, 0), 9 * inputs, {"labels": labels}, len(inputs))
    one.drop_pending()
    for stage in (one, other):
        helpers.train_step([stage], 1, inputs, labels)
    assert torch.equal(one.flatten(), other.flatten())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_do_not_decay_and_learn_more_slowly(name: str) -> None:
    """Without momentum and with equal gradients, a step moves by its rate; decay would show."""
    optimizer = {"name": name, "learning_rate": 1e-3, "weight_decay": 0.0, "momentum": 0.0}
    stages = []
    for rate, decay in ((1.0, 0.0), (0.1, 0.0), (0.1, 0.5)):
        quant = {"method": "lsq", "activations": {"bits": 0}, "step_rate": rate}
        (stage,) = chain("mlp", 1, quant, optimizer={**optimizer, "weight_decay": decay})
        stages.append((steps_of(stage), stage))
        helpers.train_step([stage], 1, *helpers.batch(helpers.IMAGES, 1))
    moved = [{name: steps_of(stage)[name] - tensor for name, tensor in before.items()} for before, stage in stages]
    for path, full in moved[0].items():
        assert float(full.abs()) > 0
        torch.testing.assert_close(moved[1][path], full / 10, rtol=2e-3, atol=1e-8)
        assert torch.equal(moved[1][path], moved[2][path])


def test_rules_see_the_whole_model_whatever_the_stage() -> None:
    rules = [{"match": "head*", "exclude": True}, {"match": "stem.convolution", "weights": {"bits": 2}}]
    for index in range(2):
        config = run("resnet", 2, {"method": "lsq", "rules": rules})
        stage = build_stage(config, helpers.IMAGES, index, helpers.CrossEntropy(), CPU)
        found = {path: m for path, m in stage.blocks.named_modules() if isinstance(m, QuantisedLayer)}
        assert found
        assert not any("linear" in path for path in found)
        grids = {path: module.get_submodule("weight_quantizer").grid for path, module in found.items()}
        assert (Grid(2) in grids.values()) == (index == 0)


def test_a_rule_that_matches_nothing_is_an_error_in_every_stage() -> None:
    quant: dict[str, Any] = {
        "method": "lsq",
        "rules": [{"match": "tail*", "exclude": True}, {"class": "Conv2d", "exclude": True}],
    }
    for index in range(2):
        with pytest.raises(ModelError, match=r"\{match: tail\*\} matches no layer of model mlp; there are: layer0"):
            build_stage(run("mlp", 2, quant), helpers.IMAGES, index, helpers.CrossEntropy(), CPU)
    assert build_stage(run("mlp", 2, {**quant, "strict": False}), helpers.IMAGES, 0, None, CPU)


def test_nothing_to_quantise_is_an_error() -> None:
    quant = {"method": "lsq", "rules": [{"match": "*", "exclude": True}]}
    with pytest.raises(ModelError, match="no layer of model mlp is quantised"):
        build_stage(run("mlp", 2, quant), helpers.IMAGES, 0, None, CPU)


def test_a_block_that_cannot_be_looked_at_is_an_error() -> None:
    def make() -> torch.nn.Module:
        if torch.empty(1).item() > 2:
            raise AssertionError
        return torch.nn.Linear(2, 2)

    plan = ModelPlan("own", HiddenShape((2,)), (BlockSpec("first", make, 1.0, HiddenShape((2,))),))
    with pytest.raises(ModelError, match="block first cannot be made on the meta device"):
        quantised(plan, QuantSection(method="lsq"))


def test_layers_of_a_family_of_transformers() -> None:
    pytest.importorskip("transformers")
    options = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "tie_word_embeddings": False}
    section = {"name": "distilgpt2", "stages": 2, "options": options}
    quant = {
        "method": "lsq",
        "rules": [{"class": "Conv1D", "weights": {"bits": 4}}, {"match": "head*", "exclude": True}],
    }
    config = RunConfig.model_validate({"model": section, "quant": quant})
    shape = DataShape("tokens", (8,), 32)
    stages = helpers.chain(config, shape)
    kinds = [type(m).__name__ for stage in stages for m in stage.blocks.modules() if isinstance(m, QuantisedLayer)]
    assert kinds == ["QuantisedConv1D"] * 4
    whole = helpers.chain(config.model_copy(update={"model": config.model.model_copy(update={"stages": 1})}), shape)
    assert helpers.train(stages, shape, 3) == helpers.train(whole, shape, 3)
    assert len(zoo.plan(config.model, shape).blocks) == 3
