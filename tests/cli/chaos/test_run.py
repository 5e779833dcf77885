"""`distqatctl sandbox --faults`: what is asked for wrongly is refused before any daemon starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from distqat.cli import sandbox
from distqat.cli.chaos import run
from distqat.cli.chaos.card import Limits
from distqat.cli.chaos.run import Weather
from distqat.cli.chaos.schedule import Kind
from distqat.cli.distqatctl import app
from distqat.config import load


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--faults", "burn=1"], "there is no fault 'burn'"),
        (["--faults", "kill=1", "--pipelines", "1"], "at least 2 pipelines"),
        (["--faults", "kill=9", "--minutes", "0.5"], "--minutes gives 0.5"),
    ],
)
def test_a_wrong_request_is_refused(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["sandbox", *arguments])
    assert done.exit_code == 2
    assert words in done.output
    assert not list(tmp_path.iterdir())


def plan(*overrides: str) -> sandbox.Plan:
    return sandbox.Plan(load(overrides=overrides), None, overrides, 2, 300.0, True, False, spares=1)


def test_the_course_follows_the_run() -> None:
    weather = Weather({Kind.KILL: 4, Kind.STOP: 2}, seed=7, limits=Limits(0.5, 60.0))
    course = run.course_of(plan("sync.warmup_steps=9", "lease.min=2"), weather)
    assert len(course.faults) == 6
    assert (course.seconds, course.measured, course.first_rounds, course.patience) == (300.0, 30.0, 9, 120.0)
    stops = {fault.seconds for fault in course.faults if fault.kind is Kind.STOP}
    assert stops == {4.0}


def test_a_run_under_faults_has_no_end_and_is_evaluated() -> None:
    settings = load(overrides=run.overrides_of(plan("optimizer.schedule=cosine")))
    assert settings.train.epochs == run.EPOCHS
    assert settings.train.evaluate_every == run.EVALUATE_EVERY
    assert settings.optimizer.schedule == "constant"
    assert "train.evaluate_every=7" in run.overrides_of(plan("train.evaluate_every=7"))
