"""Pretrained numbers: each stage reads its own slice of the files, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distqat.errors import ModelError
from distqat.model.build import build_stage
from distqat.model.zoo import weights
from tests.model import helpers
from tests.model.test_cut import assert_same
from tests.model.zoo import oracle

GPT2 = oracle.FAMILIES["gpt2"]


def loaded(where: str, stages: int = 1, options: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """All tensors of a run from there, by the library's names."""
    run = oracle.run(GPT2, stages, where, options or {})
    return oracle.names(run, GPT2.shape, helpers.tensors(helpers.chain(run, GPT2.shape)))


def of_library(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def rewrite(where: str, change: Mapping[str, Tensor | None], prefix: str = "") -> None:
    """Change or drop tensors of a checkpoint in one file, and cut a prefix off the names of all."""
    path = Path(where, weights.SINGLE)
    tensors = {**load_file(path), **change}
    kept = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path)


def test_one_file_and_several_give_the_same_numbers(tmp_path: Path) -> None:
    model = oracle.whole(GPT2)
    single, sharded = oracle.save(model, tmp_path / "one"), oracle.save(model, tmp_path / "many", shard="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert_same(loaded(single, 3), of_library(model))
    assert_same(loaded(sharded, 3), of_library(model))


def test_a_stage_reads_its_own_tensors_and_opens_their_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = oracle.save(oracle.whole(GPT2), tmp_path, shard="10KB")
    held = json.loads((tmp_path / weights.INDEX).read_text())["weight_map"]
    read: list[str] = []

    class Watched(weights.Checkpoint):
        def read(self, name: str) -> Tensor:
            read.append(name)
            return super().read(name)

    monkeypatch.setattr("distqat.model.zoo.families.library.Checkpoint", Watched)
    run = oracle.run(GPT2, 3, where, {})
    run = run.model_copy(update={"model": run.model.model_copy(update={"cuts": [2, 4]})})
    own = {name for name in held if name.startswith(("transformer.h.1.", "transformer.h.2."))}
    # What is not the stage's own is not even there.
    for file in {file for name, file in held.items()} - {held[name] for name in own}:
        (tmp_path / file).unlink()
    stage = build_stage(run, GPT2.shape, 1, None)
    assert set(read) == own
    assert len(read) == len(own)
    assert stage.num_parameters == sum(parameter.numel() for parameter in stage.blocks.parameters())
    with pytest.raises(ModelError, match="has no tensor"):
        build_stage(run, GPT2.shape, 0, None)


def test_files_without_the_heads_prefix_load_as_well(tmp_path: Path) -> None:
    model = oracle.whole(GPT2)
    where = oracle.save(model, tmp_path)
    rewrite(where, {}, prefix="transformer.")
    assert_same(loaded(where), of_library(model))


def test_a_tied_model_may_be_untied_and_both_ends_begin_the_same(tmp_path: Path) -> None:
    model = oracle.whole(GPT2, tie_word_embeddings=True)
    where = oracle.save(model, tmp_path)
    assert "lm_head.weight" not in load_file(Path(where, weights.SINGLE))
    assert_same(loaded(where), of_library(model))
    tensors = loaded(where, 3, {"tie_word_embeddings": False})
    assert_same(tensors, {**of_library(model), "lm_head.weight": model.lm_head.weight.detach()})
    assert torch.equal(tensors["lm_head.weight"], tensors["transformer.wte.weight"])


def test_options_go_before_the_pretrained_config(tmp_path: Path) -> None:
    where = oracle.save(oracle.whole(GPT2), tmp_path)
    run = oracle.run(GPT2, 1, where, {"resid_pdrop": 0.5, "attn_pdrop": 0})
    (stage,) = helpers.chain(run, GPT2.shape)
    dropouts = [stage.blocks[1].get_submodule(f"layer.attn.{name}_dropout") for name in ("resid", "attn")]
    assert [dropout.p for dropout in dropouts] == [0.5, 0]
    assert len(stage.blocks) == GPT2.options["n_layer"] + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.h.1.ln_2.bias": None}, "has no tensor 'transformer.h.1.ln_2.bias'"),
        ({"transformer.wpe.weight": torch.zeros(7, 16)}, r"'transformer.wpe.weight' is \(7, 16\).*has \(20, 16\)"),
        ({"lm_head.weight": torch.full((40, 16), torch.nan)}, "lm_head.weight has no first numbers"),
        ({"lm_head.weight": torch.ones(40, 16, dtype=torch.int8)}, "tensor 'lm_head.weight' of .* is of int8"),
        ({"lm_head.weight": torch.ones(40, 16).to(torch.float8_e4m3fn)}, "'lm_head.weight' of .* is of float8_e4m3fn"),
    ],
)
def test_files_that_do_not_fit(change: Mapping[str, Tensor | None], message: str, tmp_path: Path) -> None:
    where = oracle.save(oracle.whole(GPT2), tmp_path)
    rewrite(where, change)
    with pytest.raises(ModelError, match=message):
        loaded(where)


def test_what_is_no_pretrained_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config.json"):
        loaded(str(tmp_path))
    where = oracle.save(oracle.whole(oracle.FAMILIES["llama"]), tmp_path)
    with pytest.raises(ModelError, match=r"distilgpt2 is of the family gpt2, and .* of llama"):
        loaded(where)
    (tmp_path / weights.CONFIG).write_text("{")
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        loaded(where)
    oracle.save(oracle.whole(GPT2), tmp_path)
    (tmp_path / weights.SINGLE).write_bytes(b"\x00" * 32)
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read"):
        loaded(where)
    (tmp_path / weights.SINGLE).unlink()
    with pytest.raises(ModelError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
        loaded(where)


def test_a_hub_name_is_looked_up_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    model = oracle.whole(GPT2)
    oracle.save(model, tmp_path)
    asked: list[tuple[str, str, str | None]] = []

    def download(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        if name == "unreachable/model":
            raise LocalEntryNotFoundError("no connection")
        if not (tmp_path / file).exists():
            raise EntryNotFoundError("404")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert_same(loaded("someone/tiny@v2"), of_library(model))
    assert set(asked) == {("someone/tiny", file, "v2") for file in (weights.CONFIG, weights.INDEX, weights.SINGLE)}
    with pytest.raises(ModelError, match="no directory here, and the hub cannot be reached"):
        loaded("unreachable/model")


def test_other_models_have_no_pretrained_numbers() -> None:
    run = helpers.config("mlp")
    section = run.model.model_copy(update={"pretrained": "somewhere"})
    with pytest.raises(ModelError, match="model mlp has no pretrained numbers"):
        helpers.chain(run.model_copy(update={"model": section}), helpers.IMAGES)
