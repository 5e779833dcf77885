"""Models on the library's modules at their real sizes: on the meta device, and one real slice."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.model import zoo
from distqat.model.build import build_stage, plan_stages
from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import build
from distqat.sections import ModelSection
from tests.model import helpers
from tests.model.zoo import oracle

WORDS = DataShape("tokens", (64,), 50257)
UNTIED = {"tie_word_embeddings": False}


def section(name: str, stages: int = 1, **options: Any) -> ModelSection:
    return ModelSection.model_validate({"name": name, "stages": stages, "options": options})


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As published, the head tied to the embedding: 82 M, 124 M, 355 M, 774 M, 1.56 G, 125 M, 1.3 G.
        ("distilgpt2", 81_912_576),
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt-neo-125m", 125_198_592),
        ("gpt-neo-1.3b", 1_315_575_808),
    ],
)
def test_the_named_models_have_their_published_sizes(name: str, parameters: int) -> None:
    plan = zoo.plan(section(name), WORDS)
    with torch.device("meta"):
        blocks = nn.ModuleList(spec.make() for spec in plan.blocks)
        untied = zoo.plan(section(name, **UNTIED), WORDS).blocks[-1].make()
    assert num_parameters(blocks) == parameters
    assert num_parameters(untied) - num_parameters(blocks[-1]) == blocks[0].get_parameter("wte.weight").numel()
    for stages in (2, 3, 5):
        ranges = plan_stages(section(name, stages), WORDS)
        costs = [sum(plan.costs[block] for block in own) for own in ranges]
        assert max(costs) < max(1.6 * sum(costs) / stages, 1.01 * max(plan.costs))


@pytest.mark.parametrize("family", ["gpt2", "gpt-neo", "llama"])
def test_costs_are_the_operations_that_torch_counts(family: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    tiny = oracle.FAMILIES[family]
    run = oracle.run(tiny, 1)
    hidden, _ = helpers.batch(tiny.shape, 1, 1)
    for index, spec in enumerate(zoo.plan(run.model, tiny.shape).blocks):
        block = build(spec, 7, tiny.name, index).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            hidden = block(hidden)
        if index:
            assert spec.cost == pytest.approx(counter.get_total_flops(), rel=0.35)


def test_a_stage_holds_its_own_parameters_and_no_others() -> None:
    """One layer of gpt-neo-1.3b in the middle of 26 stages: 201 MB of 5.3 GB."""
    chosen = section("gpt-neo-1.3b", 26, **UNTIED)
    run = helpers.config("mlp").model_copy(update={"model": chosen})
    plan = zoo.plan(chosen, WORDS)
    with torch.device("meta"):
        expected = num_parameters(plan.blocks[9].make()) * 4
    assert expected == 201_408_512

    def held() -> int:
        found = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
        return sum(tensor.nbytes for tensor in found if tensor.device.type != "meta")

    gc.collect()
    before = held()
    stage = build_stage(run, WORDS, 9, None)
    assert sum(parameter.nbytes for parameter in stage.blocks.parameters()) == expected
    masks = sum(buffer.nbytes for buffer in stage.blocks.buffers())
    assert masks == 2048 * 2048
    gc.collect()
    # The parameters and AdamW's two moments of them, all three of the own slice.
    assert 3 * expected <= held() - before - masks < 3 * expected + (1 << 16)
    assert stage.num_elements * 4 == expected


@pytest.mark.parametrize("name", oracle.FAMILIES)
def test_fresh_numbers_come_from_seed_and_block_alone(name: str) -> None:
    family = oracle.FAMILIES[name]
    (whole,) = helpers.chain(oracle.run(family, 1), family.shape)
    torch.manual_seed(99)
    process = torch.get_rng_state()
    chain = helpers.chain(oracle.run(family, 5), family.shape)
    assert torch.equal(torch.get_rng_state(), process)
    tensors = helpers.tensors(chain)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in helpers.tensors([whole]).items())
    weights = [tensor for name, tensor in tensors.items() if name.endswith(("q_proj.weight", "c_attn.weight"))]
    assert len(weights) == 3
    for index, weight in enumerate(weights):
        assert weight.std() == pytest.approx(0.02, rel=0.2)
        assert not torch.equal(weight, weights[index - 1])


def test_branches_of_gpt2_begin_small() -> None:
    family = oracle.FAMILIES["gpt2"]
    tensors = helpers.tensors(helpers.chain(oracle.run(family, 1), family.shape))
    for name in ("attn", "mlp"):
        assert tensors[f"blocks.2.layer.{name}.c_proj.weight"].std() == pytest.approx(0.02 / 6**0.5, rel=0.2)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("gpt2", oracle.TOKENS, {"layers": 3}, "model gpt2 has no option 'layers'; there are: .*n_layer"),
        ("gpt2", oracle.TOKENS, {"n_layer": "many"}, "options of model gpt2 do not fit: .*n_layer"),
        ("gpt2", oracle.TOKENS, {"n_positions": 8}, "takes up to 8 tokens, and a sample has 12"),
        ("gpt2", oracle.TOKENS, {"vocab_size": 39}, "40 tokens in the data, 39 in the model"),
        ("llama", oracle.TOKENS, {"hidden_size": 15, "num_attention_heads": 4}, "options of model llama do not fit"),
        ("llama", helpers.IMAGES, {}, "model llama takes tokens, and the data are image"),
        ("gpt-neo-125m", helpers.IMAGES, {}, "model gpt-neo-125m takes tokens"),
    ],
)
def test_families_that_cannot_be_planned(name: str, shape: DataShape, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        zoo.plan(section(name, **options), shape)


def test_names_of_the_config_may_be_those_of_all_families() -> None:
    plan = zoo.plan(section("gpt2", num_hidden_layers=2, hidden_size=24, num_attention_heads=2), WORDS)
    assert len(plan.blocks) == 4
    assert plan.blocks[0].output.shape == (64, 24)
    assert plan.blocks[-1].output.shape == (64, 50257)
