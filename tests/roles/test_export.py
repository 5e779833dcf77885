"""The model of a run out of its checkpoints is the model that trained, bit for bit, in each of the files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from distqat.data.sources import source_shape
from distqat.errors import ModelError, StateError
from distqat.roles import export as exporting
from distqat.roles.checkpoint.collect import collect
from distqat.roles.export import FACTS, PROGRAM, SCRATCH, TENSORS, export
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


def test_a_graph_that_cannot_be_written_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written.run("mlp", 2, None, MLP)
    chain = written.trained(config)
    written.write(tmp_path / "checkpoints", config, chain)
    export([tmp_path / "checkpoints"], tmp_path / "out")

    def save(_: object, path: Path) -> None:
        path.write_bytes(b"PK")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch.export, "save", save)
    made = export([tmp_path / "checkpoints"], tmp_path / "out")
    assert made.graph is None
    assert "RuntimeError: PytorchStreamWriter failed" in made.fault
    assert {path.name for path in (tmp_path / "out").iterdir()} == {TENSORS, FACTS}
    assert json.loads((tmp_path / "out" / FACTS).read_text())["graph"]["why"] == made.fault


def test_an_export_that_is_cut_short_changes_nothing_or_leaves_no_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written.run("mlp", 2, None, MLP)
    chain = written.trained(config)
    written.write(tmp_path / "checkpoints", config, chain)
    out = tmp_path / "out"
    export([tmp_path / "checkpoints"], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    written.write(tmp_path / "checkpoints", config, written.trained(config, 3), number=5, step=50)
    with monkeypatch.context() as patched:
        patched.setattr(torch.export, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export([tmp_path / "checkpoints"], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for moves in range(3):
        with monkeypatch.context() as patched:
            patched.setattr("os.replace", partial(_replace, iter(range(moves))))
            with pytest.raises(KeyboardInterrupt):
                export([tmp_path / "checkpoints"], out)
        names = {path.name for path in out.iterdir()}
        assert FACTS not in names
        assert (PROGRAM in names) == (moves > 1)


def test_what_a_killed_export_left_is_neither_taken_nor_kept(tmp_path: Path) -> None:
    config = written.run("mlp", 2, None, MLP)
    written.write(tmp_path / "checkpoints", config, written.trained(config))
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    with subprocess.Popen(["sleep", "60"]) as running:
        for process in (dead, running):
            left = out / f"{SCRATCH}{process.pid}-x"
            left.mkdir(parents=True)
            (left / PROGRAM).write_bytes(b"of another moment")
        export([tmp_path / "checkpoints"], out)
        assert (out / PROGRAM).read_bytes() != b"of another moment"
        # A graph of before does not stay beside weights that were exported without one.
        export([tmp_path / "checkpoints"], out, with_graph=False)
        assert {path.name for path in out.iterdir()} == {TENSORS, FACTS, left.name}
        running.kill()


def interrupted(*_: object) -> None:
    """What a user's Ctrl-C does there."""
    raise KeyboardInterrupt


def _replace(left: Iterator[int], source: Path, target: Path) -> None:
    """The system's own, so often."""
    if next(left, None) is None:
        interrupted()
    source.rename(target)


def test_of_a_pretrained_model_only_the_config_is_needed(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    where = tmp_path / "pretrained"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, vocab_size=256)).save_pretrained(where)
    config = written.run("distilgpt2", 2, None, {})
    config = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": str(where)})})
    chain = written.trained(config)
    written.write(tmp_path / "checkpoints", config, chain)
    (where / "model.safetensors").unlink()
    made = export([tmp_path / "checkpoints"], tmp_path / "out")
    assert made.fault == ""
    program = torch.export.load(tmp_path / "out" / PROGRAM).module()
    inputs, _ = helpers.batch(source_shape(config).data, 7, 3)
    assert torch.equal(program(inputs), written.evaluated(chain, inputs))


def test_a_hub_that_a_checkpoint_names_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    plain = written.run("distilgpt2", 1, None, GPT2)
    config = plain.model_copy(update={"model": plain.model.model_copy(update={"pretrained": "someone/tiny"})})
    written.write(tmp_path, config, written.trained(plain, 0))
    asked: list[str] = []

    def fetch(where: str, file: str) -> None:
        asked.append(f"{where}/{file}")

    monkeypatch.setattr("distqat.model.zoo.weights._fetch", fetch)
    with pytest.raises(ModelError, match=r"pretrained 'someone/tiny', which is no directory here.*--config"):
        export([tmp_path], tmp_path / "out")
    assert asked == []
    with pytest.raises(ModelError, match=r"has no config\.json"):
        export([tmp_path], tmp_path / "out", config)
    assert asked == ["someone/tiny/config.json"]


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
