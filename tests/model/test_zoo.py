from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from distqat.errors import ModelError
from distqat.ids import MicrobatchId
from distqat.model import zoo
from distqat.model.build import build_stage, build_whole, plan_stages, stage_names
from distqat.model.shapes import DataShape
from distqat.model.zoo import resnet
from distqat.model.zoo.blocks import BatchNorm, BlockSpec, HiddenShape, ModelPlan, build
from distqat.sections import ModelSection
from tests.model import helpers


def plan(name: str, shape: DataShape, **options: Any) -> ModelPlan:
    return zoo.plan(ModelSection.model_validate({"name": name, "options": options}), shape)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", DataShape("image", (1, 8, 8), 10)),
        ("resnet", DataShape("image", (3, 32, 32), 10)),
        ("resnet", DataShape("image", (1, 7, 9), 3)),
        ("resnet18", DataShape("image", (3, 32, 32), 100)),
        ("resnet18", DataShape("image", (3, 96, 80), 5)),
        ("resnet50", DataShape("image", (3, 32, 32), 10)),
        ("resnet50", DataShape("image", (3, 70, 90), 5)),
        ("gpt", DataShape("tokens", (16,), 256)),
    ],
)
def test_each_block_gives_what_its_plan_says(name: str, shape: DataShape) -> None:
    whole = plan(name, shape, width=8) if name in resnet.STANDARD else plan(name, shape)
    hidden, _ = helpers.batch(shape, 0, 2)
    for index, spec in enumerate(whole.blocks):
        hidden = build(spec, 7, name, index)(hidden)
        assert tuple(hidden.shape) == (2, *spec.output.shape)
        assert hidden.dtype == spec.output.dtype
        assert spec.cost > 0
    assert hidden.shape[-1] == shape.classes


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    # What torchvision's have, with the large stem and a thousand classes.
    [("resnet18", 18, 11_689_512), ("resnet50", 50, 25_557_032), ("resnet101", 101, 44_549_160)],
)
@pytest.mark.parametrize(("pixels", "kernel"), [(32, 3), (64, 3), (224, 7)])
def test_the_standard_networks(name: str, layers: int, parameters: int, pixels: int, kernel: int) -> None:
    specs = plan(name, DataShape("image", (3, pixels, pixels), 1000)).blocks
    with torch.device("meta"):
        blocks = nn.Sequential(*(spec.make() for spec in specs))
        hidden = torch.empty(2, 3, pixels, pixels)
        for block, spec in zip(blocks, specs, strict=True):
            hidden = block(hidden)
            assert tuple(hidden.shape) == (2, *spec.output.shape)
    convolutions = [module for module in blocks.modules() if isinstance(module, nn.Conv2d)]
    shortcuts = sum(getattr(block, "shortcut", None) is not None for block in blocks)
    assert len(convolutions) - shortcuts + 1 == layers
    assert convolutions[0].kernel_size == (kernel, kernel)
    # The small stem is 3x3 instead of 7x7.
    expected = parameters - 64 * 3 * (49 - kernel * kernel)
    assert sum(parameter.numel() for parameter in blocks.parameters()) == expected


@pytest.mark.parametrize(("pixels", "operations"), [(224, 4.09e9), (32, 1.30e9)])
def test_a_resnet50_costs_what_is_published(pixels: int, operations: float) -> None:
    specs = plan("resnet50", DataShape("image", (3, pixels, pixels), 1000)).blocks
    # Published as multiply-adds, of which each is two operations.
    assert sum(spec.cost for spec in specs) == pytest.approx(2 * operations, rel=0.1)


def test_transformers_is_not_imported_before_one_of_its_families_is_asked_for() -> None:
    script = "import sys, distqat.model.build; assert not {'transformers', 'huggingface_hub'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_initial_numbers_depend_on_seed_model_and_block_alone() -> None:
    spec = plan("mlp", helpers.IMAGES).blocks[1]

    def weight(seed: int, model: str, index: int) -> torch.Tensor:
        return next(build(spec, seed, model, index).parameters())

    torch.manual_seed(1)
    base = weight(7, "mlp", 1)
    torch.manual_seed(2)
    process = torch.get_rng_state()
    assert torch.equal(weight(7, "mlp", 1), base)
    assert torch.equal(torch.get_rng_state(), process)
    for seed, model, index in ((8, "mlp", 1), (7, "gpt", 1), (7, "mlp", 2)):
        assert not torch.equal(weight(seed, model, index), base)


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt"])
def test_initial_numbers_are_all_set_and_sane(name: str) -> None:
    shape = helpers.MODELS[name][0]
    for index, spec in enumerate(plan(name, shape).blocks):
        block = build(spec, 7, name, index)
        for tensor in itertools.chain(block.parameters(), block.buffers()):
            assert torch.isfinite(tensor).all()
            assert tensor.abs().max() < 4
        for module in block.modules():
            if isinstance(module, BatchNorm):
                assert module.num_batches_tracked is None
                assert module.running_var is not None
                assert bool((module.running_var == 1).all())


def test_a_module_without_a_rule_is_refused() -> None:
    spec = BlockSpec("odd", lambda: nn.GroupNorm(2, 4), 1.0, HiddenShape((4,)))
    with pytest.raises(ModelError, match="no rule for the initial numbers of a GroupNorm"):
        build(spec, 7, "odd", 0)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        (
            "lstm",
            helpers.IMAGES,
            {},
            "unknown model 'lstm'; there are: distilgpt2, gpt, .*, resnet, resnet101, resnet18, resnet50, .*; your own",
        ),
        ("mlp", helpers.IMAGES, {"heigth": 3}, "model mlp has no option 'heigth'; there are: depth, hidden"),
        ("mlp", helpers.IMAGES, {"hidden": 0}, "option 'hidden' of model mlp: .*greater than or equal to 1.*got 0"),
        ("mlp", helpers.IMAGES, {"hidden": "wide"}, "option 'hidden' of model mlp: .*integer"),
        ("resnet", helpers.IMAGES, {"blocks": [1, 0]}, "option 'blocks' of model resnet: each group has 1 to 256"),
        ("gpt", helpers.TOKENS, {"heads": 3}, "3 heads cannot share a width of 128"),
        ("gpt", helpers.TOKENS, {"dropout": 1.0}, "option 'dropout' of model gpt"),
        ("gpt", helpers.IMAGES, {}, "model gpt takes tokens, and the data are image"),
        ("mlp", helpers.TOKENS, {}, "model mlp takes images, and the data are tokens"),
        ("resnet", helpers.TOKENS, {}, "model resnet takes images"),
        ("resnet18", helpers.TOKENS, {}, "model resnet18 takes images"),
    ],
)
def test_models_that_cannot_be_planned(name: str, shape: DataShape, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        plan(name, shape, **options)


@pytest.mark.parametrize(
    ("kind", "inputs", "classes"),
    [("image", (8, 8), 10), ("image", (0, 8, 8), 10), ("tokens", (4,), 1), ("tokens", (4, 4), 9), ("sound", (4,), 9)],
)
def test_shapes_that_make_no_sense(kind: Any, inputs: tuple[int, ...], classes: int) -> None:
    with pytest.raises(ModelError):
        DataShape(kind, inputs, classes)


def test_stages_have_names_and_ranges() -> None:
    run = helpers.config("resnet", 3)
    assert stage_names(run, helpers.IMAGES) == ["resnet/0", "resnet/1", "resnet/2"]
    ranges = plan_stages(run.model, helpers.IMAGES)
    assert [block for own in ranges for block in own] == list(range(5))
    with pytest.raises(ModelError, match="5 blocks, so it cannot be cut into 6 stages"):
        stage_names(helpers.config("resnet", 6), helpers.IMAGES)


def test_the_baseline_is_uncut_whatever_the_runs_cut() -> None:
    task = helpers.CrossEntropy()
    whole = build_whole(helpers.config("mlp", 3), helpers.IMAGES, task)
    alone = build_stage(helpers.config("mlp", 1), helpers.IMAGES, 0, task)
    assert whole.num_stages == 1
    assert torch.equal(whole.flatten(), alone.flatten())


def test_a_small_gpt_learns() -> None:
    shape = DataShape("tokens", (32,), 256)
    run = helpers.config("gpt", options={"layers": 2, "width": 64, "heads": 2})
    stage = build_whole(run, shape, helpers.CrossEntropy())
    text = torch.tensor(list(b"the swarm trains one model that no single peer holds. " * 3))
    losses = []
    for step in range(1, 61):
        begins = [(step * 5 + number * 11) % 100 for number in range(4)]
        windows = torch.stack([text[begin : begin + 33] for begin in begins])
        result = stage.loss(MicrobatchId(step, 0), windows[:, :-1], {"labels": windows[:, 1:]}, 4)
        stage.commit(step)
        losses.append(result.sums["loss"] / 4)
    assert losses[0] == pytest.approx(torch.tensor(256.0).log().item(), abs=0.1)
    assert losses[-1] < 1.5
