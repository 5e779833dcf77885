"""What a sandbox starts its daemons with, and what it clears away before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distqat.cli.sandbox import Plan
from distqat.config import load

PLAN = Plan(load(overrides=["model.stages=3"]), None, ("model.stages=3",), 2, 60.0, True, False)


def test_spares_are_further_experts_and_make_no_pipeline_of_their_own() -> None:
    assert PLAN.experts == 6
    assert PLAN.arguments() == ["--set", "model.stages=3"]
    spared = replace(PLAN, spares=3, config=Path("run.yaml"))
    assert spared.experts == 9
    wanted = ["--config", "run.yaml", "--set", "model.stages=3", "--set", "plan.max_pipelines=2"]
    assert spared.arguments() == wanted


def test_what_an_earlier_run_has_left_is_cleared_away(tmp_path: Path) -> None:
    plan = replace(PLAN, settings=load(overrides=[f"daemon.log_dir={tmp_path}"]))
    plan.clear()
    for name in ("states/head/key", "initial_peers.txt", "metrics.jsonl", "head.log"):
        path = plan.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    plan.clear()
    assert [path.name for path in plan.folder.iterdir()] == ["head.log"]
