"""Shipped configs, tiny, through the shipped command: real daemons, real rounds, every sample once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distqat.config import load
from tests import dwarfs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAMPLES = 390
"""Of a run, about: some 24 steps of each pipeline, so that the second one comes before the first has done it all."""

SHORT = {
    "train.evaluate_every": "0",
    "optimizer.warmup_steps": "2",
    "sync.warmup_steps": "3",
    "sync.ramp_rounds": "0",
    "sync.inner_steps": "4",
    "sync.fragments": "1",
    "sync.overlap": "1",
    "daemon.threads": "1",
}


def sandbox(name: str, folder: Path) -> dict[str, Any]:
    """The scorecard of two pipelines."""
    command = [sys.executable, "-m", "distqat.cli.distqatctl", "sandbox", str(dwarfs.CONFIGS / f"{name}.yaml")]
    epochs = SAMPLES / dwarfs.num_samples(name)
    more = {"train.epochs": str(epochs), "daemon.log_dir": str(folder / "logs")}
    settings = dwarfs.overrides(name, folder, **SHORT, **more)
    done = subprocess.run(
        [*command, "--no-baseline", "--json", "--minutes", "4", *(part for s in settings for part in ("--set", s))],
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    card: dict[str, Any] = json.loads(done.stdout)
    return card


def check(name: str, folder: Path) -> None:
    card = sandbox(name, folder)
    assert card["pipelines"] == 2
    assert card["digests_equal"]
    assert card["stages_compared"] == load(dwarfs.CONFIGS / f"{name}.yaml").model.stages
    assert card["rounds"] >= 3
    assert (card["samples_lost"], card["samples_doubled"], card["samples_skipped"]) == (0, 0, 0)


def test_a_tied_model_in_two_stages_trains_in_a_sandbox(tmp_path: Path) -> None:
    check("distilgpt2_split", tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted({*dwarfs.FAMILIES} - {"distilgpt2_split"}))
def test_a_config_trains_in_a_sandbox(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
