"""`distqatctl export` says what it wrote, and why not."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from distqat.cli.distqatctl import app
from tests.roles import written
from tests.roles.written import QUANT


def test_it_says_what_it_wrote(tmp_path: Path) -> None:
    config = written.run("resnet", 2, QUANT, {"width": 2, "blocks": [1]})
    written.write(tmp_path / "checkpoints", config, written.trained(config))
    done = CliRunner().invoke(app, ["export", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("model resnet of run digits@")
    assert lines[0].endswith("committed in round 4")
    assert "4 layers quantised (3 w4a4, 1 w8a8)" in lines[1]
    assert "graph for batches of any size" in lines[2]
    assert len(lines) == 4


def test_without_a_graph_it_says_so(tmp_path: Path) -> None:
    config = written.run("mlp", 1)
    written.write(tmp_path / "checkpoints", config, written.trained(config))
    words = ["export", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out"), "--no-graph"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "no layer quantised" in done.output
    assert done.output.splitlines()[-1] == "no graph: not asked for"


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.output == f"distqatctl: no whole checkpoint lies below {tmp_path}\n"
    file = tmp_path / "run.yaml"
    file.write_text("model: {name: mlp, stages: 1}\n")
    words = ["export", str(tmp_path), "--config", str(file), "--set", "run.name=mine"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "no checkpoint of run mine@" in done.output
