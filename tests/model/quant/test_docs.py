"""The examples of docs/quantise.md are what they say: each is loaded, cut, and trained for a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distqat.config import load
from distqat.errors import ConfigError
from distqat.model.build import build_stage
from distqat.model.quant.layers import QuantisedLayer
from distqat.model.stage import CPU
from distqat.quant_sections import QuantSection
from tests.model import helpers

PAGE = Path(__file__).parents[3] / "docs" / "quantise.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
SHAPES = {"resnet": helpers.IMAGES, "gpt": helpers.TOKENS}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_each_example_trains(number: int, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(EXAMPLES[number])
    config = load(file).run_config()
    shape = SHAPES[config.model.name]
    stages = [build_stage(config, shape, index, helpers.CrossEntropy(), CPU) for index in range(config.model.stages)]
    bits = {
        module.get_submodule("weight_quantizer").grid.bits  # type: ignore[union-attr]
        for stage in stages
        for module in stage.blocks.modules()
        if isinstance(module, QuantisedLayer)
    }
    forms = {spec.boundary.bits for stage in stages for spec in stage.plan.blocks if spec.boundary is not None}
    if config.wire.can_learn:
        assert forms == {4}
        assert bits == (set() if config.quant.method == "off" else {8})
    else:
        assert (bits, forms) == ({4, 8}, set())
    assert helpers.train(stages, shape, 1)


def test_every_setting_and_default_is_on_the_page() -> None:
    table = {line.split("|")[1]: line for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    for name, field in QuantSection.model_fields.items():
        (row,) = [line for names, line in table.items() if f"`{name}`" in names] or [""]
        default = field.get_default(call_default_factory=True)
        if name == "method":
            assert "| off |" in row
        elif name not in ("weights", "activations"):
            assert f"| {str(default).lower()} |" in row, name


def test_first_steps_need_a_round_that_averages_them() -> None:
    with pytest.raises(ConfigError, match=r"sync.warmup_steps be at least 1"):
        load(None, ["quant.method=lsq", "sync.warmup_steps=0"])
    load(None, ["quant.method=minmax", "sync.warmup_steps=0"])
    load(None, ["quant.method=lsq", "quant.activations.bits=0", "sync.warmup_steps=0"])
    rules = "quant.rules=[{match: 'head*', activations: {bits: 4}}]"
    with pytest.raises(ConfigError, match=r"sync.warmup_steps be at least 1"):
        load(None, ["quant.method=lsq", "quant.activations.bits=0", "sync.warmup_steps=0", rules])


def test_a_run_with_rules_travels_as_it_is() -> None:
    config = load(None, ["quant.method=lsq", "quant.rules=[{class: Conv2d, weights: {bits: 4}}]"]).run_config()
    again = type(config).from_canonical(config.canonical())
    assert again == config
    assert again.id == config.id
    assert again.quant.rules[0].kind == "Conv2d"
