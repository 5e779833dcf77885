"""Processes in the environment of a peer answer, their end is told; the environment is made once. Without hivemind."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from bench import hivemind
from bench.hivemind import PeerError, environment, open_peer
from tests.support import run

SHELL_PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
*venv*) mkdir -p {home}/bin; cp "$0" {home}/bin/python;;
*nothing-to-find*) echo no such package; exit 7;;
*nothing-but-waiting*) exec sleep 60;;
esac
"""


@pytest.fixture
def _our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """This interpreter, and scripts of these tests."""
    monkeypatch.setattr(hivemind, "environment", lambda: Path(sys.executable))
    monkeypatch.setattr(hivemind, "SCRIPTS", "tests.bench")


@pytest.mark.usefixtures("_our_own")
def test_another_process_answers_whatever_it_prints() -> None:
    async def scenario() -> None:
        async with open_peer("abacus", "argument") as peer:
            total, arguments, pid = await peer.ask("add", 2, 3)
            assert (total, arguments, pid) == (5, 2, peer.pid)
            assert (await peer.ask("add", 4, 5))[0] == 9
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(scenario())


@pytest.mark.usefixtures("_our_own")
def test_what_is_raised_there_is_told() -> None:
    async def scenario() -> None:
        async with open_peer("abacus") as peer:
            await peer.ask("fail")

    with pytest.raises(PeerError, match=r"(?s)abacus died when it was asked for 'fail'; it said:.*a bead is missing"):
        run(scenario())


@pytest.mark.usefixtures("_our_own")
def test_an_answer_that_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hivemind, "LEAVE_SECONDS", 0.1)

    async def scenario() -> None:
        async with open_peer("abacus") as peer:
            await peer.ask("add", 1, 1)
            await peer.ask("hang", seconds=0.1)

    with pytest.raises(PeerError, match=r"abacus: no answer to 'hang' within 0\.1 s"):
        run(scenario())


class Making:
    """An environment in a folder of its own, by an interpreter that only notes what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.log = folder / "log"
        self.python = folder / "python"
        self.python.write_text(SHELL_PYTHON.format(log=self.log, home=self.home))
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def commands(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Making:
    made = Making(tmp_path)
    monkeypatch.setattr(hivemind, "HOME", made.home)
    monkeypatch.setattr(hivemind, "PYTHON", made.home / "bin" / "python")
    monkeypatch.setattr(sys, "executable", str(made.python))
    return made


def test_the_environment_is_made_once(making: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment() == environment() == making.home / "bin" / "python"
    assert [command.split()[1] for command in making.commands()] == ["venv", "pip"]
    assert "hivemind==1.1.12" in making.commands()[1]
    monkeypatch.setattr(hivemind, "REQUIREMENTS", ("another",))
    environment()
    assert [command.split()[1] for command in making.commands()] == ["venv", "pip", "venv", "pip"]


def test_a_failure_says_which_command_and_what_it_said(making: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hivemind, "REQUIREMENTS", ("nothing-to-find",))
    for _ in range(2):
        with pytest.raises(PeerError, match=r"(?s)`.* pip install .*nothing-to-find` ended with 7; it said:\nno such"):
            environment()
    assert len(making.commands()) == 4


def test_making_it_has_a_limit(making: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hivemind, "REQUIREMENTS", ("nothing-but-waiting",))
    monkeypatch.setattr(hivemind, "INSTALL_SECONDS", 0.5)
    with pytest.raises(PeerError, match=r"nothing-but-waiting` took more than 0.5 s"):
        environment()
