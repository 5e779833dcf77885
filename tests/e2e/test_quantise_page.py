"""Every command of docs/quantise.md, run as it stands; only folders, and what would outlast a test, are changed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.__main__ import NAMES
from distqat.cli.distqatctl import app
from tests.e2e.test_readme import command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quantise.md").read_text()

SANDBOX = "distqatctl sandbox configs/digits.yaml --set quant.method=lsq"
EXPORT = "distqatctl export logs/digits --out digits-lsq"
LOCAL = (
    "distqatd --role trainer --local --config configs/digits.yaml --set quant.method=lsq "
    "--set 'quant.weights={bits: 4, per: channel}'"
)
SHORT = (
    *("--no-baseline", "--pipelines", "1", "--set", "train.epochs=0.1", "--set", "checkpoint.steps=2"),
    *("--set", "sync.warmup_steps=1", "--set", "sync.inner_steps=2", "--set", "model.options={width: 4}"),
)


def test_every_command_is_known_here() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
    assert [line for block in blocks for line in block.splitlines()] == [SANDBOX, EXPORT, LOCAL]
    assert re.findall(r"`python -m bench (\w+)`", PAGE) == ["boundary", "quant"]
    assert {"boundary", "quant"} <= set(NAMES)


def test_what_the_sandbox_trains_is_exported_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*command(SANDBOX), *SHORT, "--set", f"daemon.log_dir={tmp_path / 'logs'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    # So little training does not pass.
    assert "verdict" in done.stdout, done.stdout + done.stderr
    monkeypatch.chdir(tmp_path)
    # In this process, which has imported torch already.
    exported = CliRunner().invoke(app, shlex.split(EXPORT)[1:])
    assert exported.exit_code == 0, exported.output
    assert "layers quantised" in exported.output
    assert "outputs are the model's bit for bit" in exported.output
    assert {path.name for path in (tmp_path / "digits-lsq").iterdir()} == {
        name for name in ("model.safetensors", "model.pt2", "export.json") if f"| `{name}` |" in PAGE
    }
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    read: dict[str, Any] = {}
    exec(snippet, read)
    assert (tuple(read["scores"].shape), tuple(read["weight"].shape)) == ((1, 10), (4, 4, 3, 3))
    assert read["weight"].dtype == read["torch"].float32


def test_the_baseline_is_quantised(tmp_path: Path) -> None:
    words = [*command(LOCAL), "--set", "train.epochs=0.1", "--set", f"daemon.log_dir={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metric"] == "accuracy"
