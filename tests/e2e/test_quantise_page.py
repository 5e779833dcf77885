"""Every command of docs/quantise.md, run as it stands; only folders, and what would outlast a test, are changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import NAMES
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
SHORT = ("--no-baseline", "--pipelines", "1", "--set", "train.epochs=1", "--set", "checkpoint.steps=15")


def test_every_command_is_known_here() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
    assert [line for block in blocks for line in block.splitlines()] == [SANDBOX, EXPORT, LOCAL]
    assert re.findall(r"`python -m bench (\w+)`", PAGE) == ["quant"]
    assert "quant" in NAMES


def test_what_the_sandbox_trains_is_exported_and_read(tmp_path: Path) -> None:
    words = [*command(SANDBOX), *SHORT, "--set", f"daemon.log_dir={tmp_path / 'logs'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    # So little training does not pass.
    assert "verdict" in done.stdout, done.stdout + done.stderr
    done = subprocess.run(command(EXPORT), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "layers quantised" in done.stdout
    assert "outputs are the model's bit for bit" in done.stdout
    assert {path.name for path in (tmp_path / "digits-lsq").iterdir()} == {
        name for name in ("model.safetensors", "model.pt2", "export.json") if f"| `{name}` |" in PAGE
    }
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    shown = f"{snippet}\nprint(tuple(scores.shape), tuple(weight.shape), weight.dtype)\n"
    done = subprocess.run([sys.executable, "-c", shown], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, 10) (16, 16, 3, 3) torch.float32")


def test_the_baseline_is_quantised(tmp_path: Path) -> None:
    words = [*command(LOCAL), "--set", "train.epochs=0.1", "--set", f"daemon.log_dir={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metric"] == "accuracy"
