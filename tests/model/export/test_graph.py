"""The program gives the model's outputs bit for bit, and what torch cannot take is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.model.export import graph
from distqat.model.export.graph import Graph, Uncut, check_version, example
from distqat.model.zoo.blocks import BlockSpec, HiddenShape

INPUTS = HiddenShape((6,))


def model(*blocks: nn.Module) -> Uncut:
    specs = [BlockSpec(f"block{number}", nn.Identity, 1.0, INPUTS) for number, _ in enumerate(blocks)]
    return Uncut(nn.ModuleList(blocks), specs)


def outputs(made: nn.Module, samples: int) -> Tensor:
    with torch.no_grad():
        result: Tensor = made(example(INPUTS, samples))
    return result


def test_a_program_takes_batches_of_any_size(tmp_path: Path) -> None:
    made = model(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4)).eval()
    checks = {samples: outputs(made, samples) for samples in (1, 2)}
    assert graph.write(made, INPUTS, checks, tmp_path / "model.pt2") == Graph(None)
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for samples in (1, 2, 7):
        assert torch.equal(loaded(example(INPUTS, samples)), outputs(made, samples))


class OneByOne(nn.Module):
    """Counts its samples while it is traced."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.stack([value * 2 for value in values])


def test_a_model_that_counts_its_samples_takes_one(tmp_path: Path) -> None:
    made = model(OneByOne())
    checks = {samples: outputs(made, samples) for samples in (1, 2)}
    assert graph.write(made, INPUTS, checks, tmp_path / "model.pt2") == Graph(1)
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(loaded(example(INPUTS, 1)), checks[1])


class Chooser(nn.Module):
    """Goes one way or the other by the numbers that it meets."""

    def forward(self, values: Tensor) -> Tensor:
        return values * 2 if float(values.sum()) > 0 else values


def test_why_torch_cannot_take_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"torch.export cannot take this model: \w+: "):
        graph.write(model(Chooser()), INPUTS, {}, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_program_with_other_outputs_is_not_written(tmp_path: Path) -> None:
    made = model(nn.Linear(6, 4))
    with pytest.raises(ModelError, match="gives other outputs than the model"):
        graph.write(made, INPUTS, {2: outputs(made, 2) + 1e-6}, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


class Bounded(nn.Module):
    """Is traced, but refuses the numbers that it is given."""

    def forward(self, values: Tensor) -> Tensor:
        torch._assert_async((values > 100).all())
        return values * 2


def test_a_program_that_does_not_run_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"torch.export cannot run the program that it makes .*: RuntimeError: "):
        graph.write(model(Bounded()), INPUTS, {1: example(INPUTS, 1)}, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_program_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"torch.export cannot write the program that it makes .*: \w+: "):
        graph.write(model(nn.Linear(6, 4)), INPUTS, {}, tmp_path / "no folder" / "model.pt2")


def test_an_old_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    with pytest.raises(ModelError, match=r"torch is 2\.4\.1\+cpu, and programs are written by 2\.6 or later"):
        graph.write(model(nn.Linear(6, 4)), INPUTS, {}, tmp_path / "model.pt2")
    for version in ("2.6.0", "2.13.0+cpu", "3.0.0a0+git"):
        check_version(version)


def test_examples_are_of_the_shape() -> None:
    tokens = example(HiddenShape((8,), torch.int64, below=5), 3)
    assert (tokens.shape, tokens.dtype, int(tokens.max()) < 5) == ((3, 8), torch.int64, True)
    assert example(INPUTS, 2).dtype == torch.float32
