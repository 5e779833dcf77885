"""The unit starts what it says: its command line is taken by the daemon, its exit codes are the daemon's."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

import pytest
import typer.testing

from distqat.cli import distqatd
from distqat.config import load

UNIT = Path(__file__).parents[2] / "deploy" / "distqatd.service"


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # Keys of units have capitals.
    parser.read_string(UNIT.read_text())
    return parser["Service"]


def test_every_flag_of_the_unit_is_one_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*unit()["Environment"].split("=", 1))
    program, *words = shlex.split(unit()["ExecStart"])
    assert Path(program).name == "distqatd"
    shown = typer.testing.CliRunner().invoke(distqatd.app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert all(word in shown for word in words if word.startswith("--"))
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert load(overrides=settings).daemon.state_dir == "/var/lib/distqat"


def test_the_unit_does_not_restart_what_cannot_be_cured() -> None:
    codes = {distqatd.EXIT_CONFIG, distqatd.EXIT_CANNOT_LISTEN, distqatd.EXIT_IDENTITY, distqatd.EXIT_VERSION}
    assert set(map(int, unit()["RestartPreventExitStatus"].split())) == codes
    # All others are cured by starting again: those who hold something of the run may come later than this one.
    every = {value for name, value in vars(distqatd).items() if name.startswith("EXIT_")}
    assert every - codes == {distqatd.EXIT_NOTHING_TO_RESUME}
    assert float(unit()["TimeoutStopSec"]) > load().daemon.drain_timeout
