"""docs/data.md, as a new user follows it: its files are made, its configs train, its commands run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from distqat.config import RunConfig, load
from distqat.data import metrics
from distqat.data.client import Batch
from distqat.data.sampler import Sampler, budget
from distqat.data.sources import open_source, training_batch
from distqat.data.tasks import find_task
from distqat.data_sections import DatasetSection
from distqat.model.build import build_whole
from distqat.roles.local import Alone, train_locally
from tests.data.sources import files
from tests.support import run

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
CONFIGS = {yaml.safe_load(text)["run"]["name"]: text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)}
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
PROMPTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]

QUICK = ["daemon.threads=1", "train.epochs=0.5"]
"""What is changed: a page does not wait for machines that are busy with other tests."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user of the page stands, with pictures and texts of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, text in CONFIGS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "prompts.py").write_text(PROMPTS)
    files.image_folder(tmp_path / "pictures", 12)
    texts = [{"text": f"One text of {number}, and the next one is of {number + 1}.\n"} for number in range(100)]
    files.table(tmp_path / "texts.parquet", texts)
    return tmp_path


def execute(command: str, desk: Path) -> str:
    """A command of the page, with the tools of this environment. Its output."""
    program, *arguments = shlex.split(command)
    tools = {
        "python": [sys.executable],
        "distqatd": [sys.executable, "-m", "distqat.cli.distqatd", *_settings(QUICK)],
        "distqatctl": [sys.executable, "-m", "distqat.cli.distqatctl"],
    }
    globbed = [name for argument in arguments for name in (sorted(map(str, desk.glob(argument))) or [argument])]
    done = subprocess.run(
        [*tools.get(program, [program]), *globbed],
        cwd=desk,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _settings(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root}


@pytest.mark.parametrize("name", ["pictures", "texts"])
def test_files_of_ones_own_are_trained_on(name: str, desk: Path) -> None:
    settings = load(desk / f"{name}.yaml", ["daemon.threads=1"])
    result = run(train_locally(settings), timeout=120)
    config = settings.run_config()
    source = open_source(config)
    assert result.steps == -(-budget(config.train.epochs, len(source.train)) // config.data.batch)
    assert result.metric == metrics.METRICS[source.task]
    # By chance a quarter of the pictures is right, and a byte has 8 bits.
    assert result.value > 0.5 if name == "pictures" else result.value < 7.0


@pytest.mark.e2e
def test_a_command_of_the_page_trains_alone(desk: Path) -> None:
    assert "distqatd --role trainer --local --config texts.yaml" in COMMANDS
    assert "bits_per_byte" in execute("distqatd --role trainer --local --config texts.yaml", desk)


@pytest.mark.soak
@pytest.mark.parametrize("command", [line for line in COMMANDS if re.search(r"(pictures|texts)\.yaml", line)])
def test_every_command_of_ones_own_files_runs(command: str, desk: Path) -> None:
    execute(command, desk)


def fetch(desk: Path) -> None:
    """The page's commands up to the training; skips, with what apt-get said, where there are no packages to be had."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("this machine has no apt-get")
    fetching, *others = [line for line in COMMANDS if line.startswith(("apt-get", "dpkg-deb", "python"))]
    done = subprocess.run(shlex.split(fetching), cwd=desk, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"{fetching}: {done.stderr.strip()[-300:]}")
    for command in others:
        execute(command, desk)


def steps(config: RunConfig, own: Alone, number: int) -> list[float]:
    """Losses of that many steps."""
    source = open_source(config)
    sampler, size = Sampler(len(source.train), config.run.seed), config.data.batch
    losses = []
    for begin in range(0, number * size, size):
        indices = sampler.indices(begin, begin + size)
        losses.append(own.step(Batch(1, begin, begin + size, training_batch(source.train, indices, begin))))
    return losses


def test_recorded_prompts_are_learned(desk: Path) -> None:
    """The real recordings and their transcripts; the tiny wav2vec 2.0 of the page."""
    fetch(desk)
    config = load(desk / "prompts.yaml").run_config()
    source = open_source(config)
    assert source.shape.inputs == (12000,)
    assert len(source.train) > 200
    said = source.train.batch(np.arange(100))["labels"]
    words = {"".join(config.dataset.characters[label - 1] for label in row if label > 0) for row in said}
    assert words & {"please try again", "thank you", "activated", "seven", "twenty", "saturday", "november", "four"}
    task = find_task(source.task, config.dataset)
    own = Alone(config, build_whole(config, source.shape, task), budget(config.train.epochs, len(source.train)))
    losses = steps(config, own, 14)
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3]), losses


def test_every_field_and_default_is_on_the_page() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for name, field in DatasetSection.model_fields.items():
        found = [row for row in rows if f"`{name}`" in row]
        assert found, f"docs/data.md does not say what {name} is"
        default = field.get_default(call_default_factory=True)
        if name not in ("held_out", "vocabulary", "mean", "std", "seconds", "labels") and default not in ("", []):
            assert any(f"| {default} |" in row for row in found), name
