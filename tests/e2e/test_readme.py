"""Every command of the README, run as it stands; only addresses, and what would outlast a test, are changed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distqat.cli.nursery.process import Executing
from tests.e2e.swarm import Swarm, ctl, open_swarm, pipelines, steps, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MADE_HERE = {"install", "test", "sim", "e2e", "lint", "types", "fmt", "proto", "bench", "clean", "demo"}
"""Verbs of make: each is checked to be there and to run what it says; running them here would run this test again."""

DAEMONS = [
    "distqatd --role monitor --role client --config configs/digits.yaml --listen 0.0.0.0:7700",
    "distqatd --role expert --join HOST:7700",
    "distqatd --join HOST:7700",
    "distqatd --role trainer --local --config FILE",
    "distqatd --role mirror --join HOST:7700",
]
QUESTIONS = [
    "distqatctl status",
    "distqatctl status --json",
    "distqatctl status --watch",
    "distqatctl config",
    "distqatctl config --template",
    "distqatctl role add trainer",
    "distqatctl role drop trainer",
    "distqatctl drain",
    "distqatctl trace last --out trace.json",
    "distqatctl why PEER",
    "distqatctl events --since 10m",
]
EXPORT = "distqatctl export"
"""Run as docs/quantise.md has it, by `test_quantise_page.py`."""
SANDBOXES = [
    ".venv/bin/distqatctl sandbox configs/digits.yaml",
    ".venv/bin/distqatctl sandbox configs/pydocs.yaml --pipelines 1 --set train.epochs=0.2",
]

STORM = ".venv/bin/distqatctl sandbox --faults kill=10,stop=5,cut=3 --minutes 5 --spares 1"
"""Takes longer than a test; `test_chaos.py` runs it with fewer faults."""


def commands() -> set[str]:
    """Everything the README tells a reader to type: shell blocks, and inline commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    inline = [text for text in re.findall(r"`([^`\n]+)`", README) if re.match(r"distqat(d|ctl) ", text)]
    return {text for text in (*lines, *inline) if text}


def test_every_command_is_known_here() -> None:
    verbs = {verb for text in commands() if text.startswith("make ") for verb in text.split()[1:]}
    assert verbs == MADE_HERE
    rest = {text for text in commands() if not text.startswith("make ")}
    assert rest == {*DAEMONS, *QUESTIONS, *SANDBOXES, STORM, EXPORT}


@pytest.mark.parametrize("verb", sorted(MADE_HERE))
def test_make_has_the_verb(verb: str) -> None:
    done = subprocess.run(["make", "-n", verb], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {"demo": "distqatctl sandbox configs/digits.yaml", "test": "pytest", "lint": "ruff", "types": "mypy"}
    assert expected.get(verb, "") in done.stdout


def test_the_machines_of_the_readme_make_a_swarm(tmp_path: Path) -> None:
    with open_swarm(tmp_path) as swarm:
        swarm.starter = Executing()
        start(swarm, "first", DAEMONS[0], "--set", "train.epochs=1000")
        first = swarm.address(swarm.daemons[0])
        start(swarm, "expert", DAEMONS[1].replace("HOST:7700", first))
        start(swarm, "spare", DAEMONS[2].replace("HOST:7700", first))
        start(swarm, "mirror", DAEMONS[4].replace("HOST:7700", first))
        swarm.wait_status(first, lambda s: pipelines(s) and steps(s) > 3, "training")
        state = ["--state-dir", str(tmp_path / "states" / "first")]
        answers = {text: ask(text, state) for text in QUESTIONS[:2]}
        assert all(done.returncode == 0 for done in answers.values()), answers
        assert "healthy" in answers[QUESTIONS[0]].stdout
        assert json.loads(answers[QUESTIONS[1]].stdout)["healthy"]
        assert_watch_shows(state)
        traced = ask(QUESTIONS[8].replace("trace.json", str(tmp_path / "trace.json")), state)
        assert traced.returncode == 0, traced.stderr
        assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        expert = next(p["peer"] for p in json.loads(answers[QUESTIONS[1]].stdout)["peers"] if p["roles"][0]["expert"])
        why = ask(QUESTIONS[9].replace("PEER", expert[:12]), state)
        assert (why.returncode, "expert is" in why.stdout) == (0, True), why.stdout + why.stderr
        told = ask(QUESTIONS[10], state)
        assert (told.returncode, "epoch opened" in told.stdout) == (0, True), told.stdout + told.stderr
        assert "name: digits" in ask(QUESTIONS[3], state).stdout
        assert ask(QUESTIONS[4], []).stdout == (ROOT / "configs" / "template.yaml").read_text()
        assert "trainer" in ask(QUESTIONS[5], state).stdout
        # Dropping it ends its pipelines; the client sees that nobody is a trainer, and takes the role again.
        assert ask(QUESTIONS[6], state).returncode == 0
        swarm.wait_status(first, lambda s: pipelines(s) and steps(s) > 3, "training with a new trainer")
        assert "draining" in ask(QUESTIONS[7], state).stdout
        process = swarm.daemons[0].process
        wait_for(lambda: process.poll() is not None, "the drained daemon to leave")
        assert process.returncode == 0


def test_the_baseline_prints_its_result(tmp_path: Path) -> None:
    text = DAEMONS[3].replace("FILE", str(ROOT / "configs" / "digits.yaml"))
    done = subprocess.run(
        [*command(text), "--set", "train.epochs=0.1", "--set", f"daemon.log_dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"metric": "accuracy"' in done.stdout.splitlines()[-1]


def test_the_sandbox_of_digits_ends_in_a_scorecard(tmp_path: Path) -> None:
    done = sandbox(SANDBOXES[0], tmp_path, "--set", "train.epochs=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "anchor digests equal" in done.stdout
    assert "passed" in done.stdout
    for name in ("initial_peers.txt", "metrics.jsonl"):
        assert (tmp_path / "digits" / name).stat().st_size > 0


@pytest.mark.soak
def test_the_sandbox_of_pydocs_ends_in_a_scorecard(tmp_path: Path) -> None:
    # A tenth of the README's budget, and a smaller model, since all that is held out is looked at twice: three stages
    # of one pipeline end exactly where one process ends.
    smaller = ("--set", "model.options={layers: 1, width: 64, heads: 4, dropout: 0.1}")
    done = sandbox(SANDBOXES[1].replace("0.2", "0.02"), tmp_path, "--json", *smaller)
    assert done.returncode == 0, done.stdout + done.stderr
    card = json.loads(done.stdout.splitlines()[-1])
    assert card["metric"] == "bits_per_byte"
    # The parameters are the same to the bit; the evaluation adds up its microbatches in another grouping.
    assert card["evaluation"] == pytest.approx(card["baseline"], rel=1e-6)


def start(swarm: Swarm, name: str, text: str, *more: str) -> None:
    """A daemon as the README starts it, on a free port of the loopback interface."""
    words = shlex.split(text)[1:]
    if "--listen" in words:
        place = words.index("--listen")
        del words[place : place + 2]
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    swarm.start(name, *words, *more)


def ask(text: str, more: list[str]) -> subprocess.CompletedProcess[str]:
    """A question as the README puts it."""
    return ctl(*shlex.split(text)[1:], *more)


def assert_watch_shows(state: list[str]) -> None:
    """`status --watch` goes on until it is interrupted."""
    words = [sys.executable, "-m", "distqat.cli.distqatctl", "status", "--watch", *state]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "200"}
    # A background job ignores the signal, and what it starts does too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as watching:
        try:
            assert watching.stdout is not None
            assert any("healthy" in line for line in watching.stdout)
            watching.send_signal(signal.SIGINT)
            watching.stdout.read()
        finally:
            watching.kill()
            signal.signal(signal.SIGINT, before)


def sandbox(text: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A sandbox as the README starts it, with its logs in a folder of the test."""
    words = [*command(text), *more, "--set", f"daemon.log_dir={folder}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def command(text: str) -> list[str]:
    """The words of a command, run by this interpreter."""
    program, *words = shlex.split(text)
    return [sys.executable, "-m", f"distqat.cli.{Path(program).name}", *words]
