"""The model of a run out of its checkpoints is the model that trained, bit for bit, in each of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from distqat.data.sources import source_shape
from distqat.errors import ModelError, StateError
from distqat.roles import export as exporting
from distqat.roles.checkpoint.collect import collect
from distqat.roles.export import FACTS, PROGRAM, TENSORS, export
from tests.model import helpers
from tests.roles import written
from tests.roles.written import QUANT

HARDWARE = {"slice_bits": 2, "accumulator_length": 9, "accumulator_bits": 6}
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
MLP = {"hidden": 8, "depth": 2}
GPT = {"layers": 1, "heads": 2, "width": 8}
SMALL = {"width": 2, "blocks": [1]}

RUNS: dict[str, Any] = {
    "resnet, lsq": lambda: written.run("resnet", 2, QUANT, SMALL),
    "mlp, hardware": lambda: written.run("mlp", 3, {**QUANT, **HARDWARE}, MLP),
    "mlp, observed": lambda: written.run("mlp", 2, {"method": "percentile"}, MLP),
    "gpt, lsq+, fragments": lambda: written.run("gpt", 2, {"method": "lsq+"}, GPT, sync={"fragments": 2}),
    "mlp, learned wire": lambda: written.run("mlp", 2, None, MLP, wire={"activations": "learned"}),
    "gpt2, lsq, tied": lambda: written.run("distilgpt2", 2, {"method": "lsq"}, GPT2),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_graph_of_a_run_gives_its_outputs_bit_for_bit(name: str, tmp_path: Path) -> None:
    if "gpt2" in name:
        pytest.importorskip("transformers")
    config = RUNS[name]()
    chain = written.trained(config)
    written.write(tmp_path / "checkpoints", config, chain)
    made = export([tmp_path / "checkpoints"], tmp_path / "out")
    assert (made.fault, made.moment.rounds) == ("", (4,) * len(chain))
    assert set(made.sizes) == {path.name for path in (tmp_path / "out").iterdir()} == {TENSORS, PROGRAM, FACTS}
    program = torch.export.load(tmp_path / "out" / PROGRAM).module()
    for samples in (1, 5):
        inputs, _ = helpers.batch(source_shape(config).data, 7, samples)
        assert torch.equal(program(inputs), written.evaluated(chain, inputs))
    held = safetensors.torch.load_file(tmp_path / "out" / TENSORS)
    assert len(held) == made.num_tensors
    facts = json.loads((tmp_path / "out" / FACTS).read_text())
    assert facts["layers"].keys() == made.layers.keys()
    assert facts["graph"] == {"file": PROGRAM, "samples": None}
    for layer, numbers in facts["layers"].items():
        assert held[f"{layer}.weight"].dtype == torch.int8
        largest = 2 ** (numbers["weights"]["bits"] - 1)
        assert int(held[f"{layer}.weight"].min()) >= -largest
        assert f"{layer}.weight_scale" in held
        assert f"{layer}.input_scale" in held
        assert (f"{layer}.weight_slices" in held) == (numbers["slice_bits"] > 0)
    assert bool(facts["layers"]) == (config.quant.method != "off")


def test_a_model_of_transformers_loads_what_is_plain(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = written.run("distilgpt2", 2, None, GPT2)
    chain = written.trained(config)
    written.write(tmp_path, config, chain)
    made = export([tmp_path], tmp_path / "out", config, with_graph=False)
    assert (made.graph, made.fault) == (None, "not asked for")
    plain = {**GPT2, "vocab_size": 256, "attn_implementation": "sdpa"}
    library = transformers.GPT2LMHeadModel(transformers.GPT2Config(**plain)).eval()
    library.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / TENSORS))
    inputs, _ = helpers.batch(source_shape(config).data, 7, 3)
    with torch.no_grad():
        torch.testing.assert_close(library(inputs).logits, written.evaluated(chain, inputs))


def test_what_torch_cannot_take_is_said_and_the_tensors_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written.run("mlp", 2, {"method": "lsq"})
    written.write(tmp_path, config, written.trained(config))
    assert export([tmp_path], tmp_path / "out").fault == ""
    monkeypatch.setattr(torch, "__version__", "2.4.0")
    made = export([tmp_path], tmp_path / "out")
    assert made.graph is None
    assert "torch is 2.4.0" in made.fault
    # That of the export before would be taken for this one's.
    assert {path.name for path in (tmp_path / "out").iterdir()} == {TENSORS, FACTS}
    assert json.loads((tmp_path / "out" / FACTS).read_text())["graph"] == {"file": None, "why": made.fault}


def test_a_run_that_has_not_trained_cannot_be_deployed(tmp_path: Path) -> None:
    config = written.run("mlp", 1, {"method": "lsq"})
    written.write(tmp_path, config, helpers.chain(config, helpers.IMAGES))
    with pytest.raises(ModelError, match="nothing has been trained"):
        export([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_model_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written.run("mlp", 2)
    written.write(tmp_path, config, helpers.chain(config, helpers.IMAGES))
    other = written.run("resnet", 2)
    moment = collect([tmp_path], None)
    monkeypatch.setattr(exporting, "collect", lambda *_: type(moment)(other, moment.folders, moment.manifests))
    with pytest.raises(StateError, match="is of another stage"):
        export([tmp_path], tmp_path / "out")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    config = written.run("mlp", 1)
    written.write(tmp_path, config, helpers.chain(config, helpers.IMAGES))
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"\(.*file/out\)"):
        export([tmp_path], tmp_path / "file" / "out")
