"""Real faults by a seeded schedule, through the shipped command; its own scorecard must agree that they came."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_readme import STORM

pytestmark = pytest.mark.e2e

CHAOS = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text()
THIRTY = "distqatctl sandbox --faults kill=30,stop=20,cut=10 --minutes 30"

SMALL = ("model.name=mlp", "data.batch=16", "sync.warmup_steps=5", "sync.inner_steps=5", "lease.min=2")
"""A model that steps fast, on machines that are told of silence soon."""


def storm(folder: Path, *arguments: str, settings: tuple[str, ...] = SMALL) -> tuple[int, dict[str, Any], str]:
    """Exit code, scorecard, and what it said meanwhile."""
    overrides = [part for text in (*settings, f"daemon.log_dir={folder}") for part in ("--set", text)]
    command = [sys.executable, "-m", "distqat.cli.distqatctl", *arguments, "--json", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.timeout(900)
def test_a_kill_a_stop_and_a_cut_cost_no_sample_and_no_digest(tmp_path: Path) -> None:
    # What is kept, and how soon, depends on what else the machine does; nothing else here is a matter of speed.
    text = STORM.replace("kill=10,stop=5,cut=3", "kill=1,stop=1,cut=1").replace("--minutes 5", "--minutes 0.28")
    code, card, said = storm(tmp_path, *shlex.split(text)[1:], "--keep", "0", "--within", "150", "--no-baseline")
    assert code == 0, (card, said)
    assert card["passed"] is True
    assert card["injected"] == card["asked"] == {"kill": 1, "stop": 1, "cut": 1}
    assert len(card["faults"]) == 3
    assert all(fault["recovery"] > 0 and fault["away"] > 0 for fault in card["faults"])
    assert sum(kind["count"] for kind in card["recovery_seconds"].values()) == 3
    assert (card["samples_lost"], card["samples_doubled"]) == (0, 0)
    assert card["samples"] > 0
    assert card["digests_compared"] > 0
    assert card["digests_unequal"] == 0
    assert card["throughput_kept"] > 0
    assert "fault 2: " in said


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_half_an_hour_of_sixty_faults_keeps_the_throughput(tmp_path: Path) -> None:
    """Twelve daemons: a head, four pipelines of two stages, and three spares. The command is that of docs/chaos.md."""
    wanted = next(line.strip() for line in CHAOS.splitlines() if line.strip().startswith(THIRTY))
    code, card, said = storm(tmp_path, *shlex.split(wanted)[1:], "--no-baseline", settings=())
    assert code == 0, (card, said)
    assert card["injected"] == card["asked"] == {"kill": 30, "stop": 20, "cut": 10}
    assert card["digests_compared"] > 1000
