"""A user's own model, which knows nothing of distqat but what a block is, trains as the models of the zoo do."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distqat.config import RunConfig
from distqat.errors import ModelError
from distqat.model import zoo
from distqat.model.shapes import DataShape
from distqat.model.stage import Stage
from distqat.model.zoo import own
from distqat.model.zoo.blocks import BlockSpec, HiddenShape
from distqat.sections import ModelSection
from tests.model import helpers
from tests.model.test_cut import assert_same

TOY = "tests.model.zoo.toy:Toy"
DOCS = Path(__file__).parents[3] / "docs" / "models.md"


class Empty:
    """Gives no blocks."""

    def __init__(self, data: DataShape) -> None:
        """Takes no options."""

    def blocks(self) -> list[BlockSpec]:
        return []


class Free(Empty):
    """Its block costs nothing."""

    def blocks(self) -> list[BlockSpec]:
        return [BlockSpec("all", nn.Identity, 0.0, HiddenShape((1,)))]


class Normed(Empty):
    """With torch's own batch norm, which counts its batches."""

    def blocks(self) -> list[BlockSpec]:
        channels = HiddenShape((1, 8, 8))
        return [
            BlockSpec("norm", lambda: nn.BatchNorm2d(1), 1.0, channels),
            BlockSpec("head", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 1.0, HiddenShape((10,))),
        ]


def chain(name: str, stages: int, **options: Any) -> list[Stage]:
    section = {"name": name, "stages": stages, "options": options}
    return helpers.chain(RunConfig.model_validate({"model": section}), helpers.IMAGES)


def test_every_cut_trains_the_same_numbers() -> None:
    whole = chain(TOY, 1, dropout=0.3)
    losses = helpers.train(whole, helpers.IMAGES, 8)
    for number in (2, 3, 4):
        cut = chain(TOY, number, dropout=0.3)
        assert helpers.train(cut, helpers.IMAGES, 8) == losses
        assert_same(helpers.tensors(cut), helpers.tensors(whole))


def test_it_learns() -> None:
    drive, (inputs, labels) = helpers.Drive(chain(TOY, 2)), helpers.batch(helpers.IMAGES, 1)
    losses = [drive.step(step, inputs, labels) for step in range(1, 31)]
    assert losses[-1] < 0.5 * losses[0]


def test_its_draws_are_the_runs_and_leave_the_process_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    losses = helpers.train(chain(TOY, 2, dropout=0.3), helpers.IMAGES, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert helpers.train(chain(TOY, 2, dropout=0.3), helpers.IMAGES, 2) == losses
    assert helpers.train(chain(TOY, 2, dropout=0.0), helpers.IMAGES, 2) != losses


def test_recomputing_draws_the_same_again() -> None:
    section = {"name": TOY, "stages": 2, "options": {"dropout": 0.3}}
    again = RunConfig.model_validate({"model": section, "pipeline": {"recompute": ["*/0"]}})
    recomputed = helpers.train(helpers.chain(again, helpers.IMAGES), helpers.IMAGES, 3)
    assert recomputed == helpers.train(chain(TOY, 2, dropout=0.3), helpers.IMAGES, 3)


def test_counters_stay_where_they_are() -> None:
    stages = chain(f"{__name__}:Normed", 2)
    names = [slot.name for slot in stages[0].layout]
    assert names == [f"blocks.0.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    helpers.train(stages, helpers.IMAGES, 2)
    counter = stages[0].blocks[0].get_buffer("num_batches_tracked")
    assert int(counter) == 2 * helpers.MICROBATCHES


def test_an_entry_point_is_a_name_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("toy", TOY, "distqat.models")
    found = {"toy": importlib.metadata.EntryPoints([point])}
    monkeypatch.setattr("distqat.model.zoo.own.entry_points", lambda group, name: found.get(name, ()))
    by_name = chain("toy", 2)
    assert [stage.name for stage in by_name] == ["toy/0", "toy/1"]
    with pytest.raises(ModelError, match="unknown model 'tow'"):
        chain("tow", 1)


class Leaving(Empty):
    """Its block ends the process."""

    def blocks(self) -> list[BlockSpec]:
        return [BlockSpec("all", lambda: sys.exit(3), 1.0, HiddenShape((1,)))]


class Broken(Empty):
    """Fails in ways that no model should."""

    def __init__(self, data: DataShape, how: str, late: bool = False) -> None:
        """`late`: in `blocks()`."""
        self.how, self.late = how, late
        if not late:
            self._fail()

    def blocks(self) -> list[BlockSpec]:
        self._fail()
        return []

    def _fail(self) -> None:
        if self.how == "exit":
            sys.exit("leave")
        if self.how == "interrupt":
            raise KeyboardInterrupt
        raise KeyError("no such thing")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a module of that text; its name."""

    def write(text: str) -> str:
        (tmp_path / "distqat_test_script.py").write_text(text)
        return "distqat_test_script"

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "distqat_test_script", raising=False)
    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit(3)", "'distqat_test_script' cannot be imported on this peer: SystemExit: 3"),
        ("raise KeyError('gone')", "cannot be imported on this peer: KeyError: 'gone'"),
        ("def", "cannot be imported on this peer: SyntaxError"),
    ],
)
def test_a_module_that_fails_ends_no_daemon(script: Callable[[str], str], text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        own.blocks(f"{script(text)}:X", {}, helpers.IMAGES)


@pytest.mark.parametrize("late", [False, True])
def test_neither_does_a_class(late: bool) -> None:
    for how, message in (("exit", "SystemExit: leave"), ("key", "KeyError: 'no such thing'")):
        with pytest.raises(ModelError, match=f"{__name__}:Broken cannot be made of these .*: {message}"):
            own.blocks(f"{__name__}:Broken", {"how": how, "late": late}, helpers.IMAGES)
    with pytest.raises(KeyboardInterrupt):
        own.blocks(f"{__name__}:Broken", {"how": "interrupt", "late": late}, helpers.IMAGES)


def test_neither_does_a_block() -> None:
    with pytest.raises(ModelError, match=f"{__name__}:Leaving: block 'all' cannot be built: SystemExit: 3"):
        chain(f"{__name__}:Leaving", 1)


def test_only_what_is_allowed_or_installed_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpt", "no-such-model", TOY):
        own.check(name, [TOY])
    own.check(TOY, ["other:*", "tests.model.zoo.*:T*"])
    with pytest.raises(ModelError, match=r"let daemon\.own_models hold 'tests\.model\.zoo\.toy:Toy'"):
        own.check(TOY, ["tests.model.zoo.toy", "toy:Toy", "gpt"])
    point = importlib.metadata.EntryPoint("toy", TOY, "distqat.models")
    monkeypatch.setattr("distqat.model.zoo.own.entry_points", lambda group, name: [point] if name == "toy" else [])
    own.check("toy", [])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no.such.package:Model", {}, "module 'no.such.package' cannot be imported on this peer"),
        (":Toy", {}, "module '' cannot be imported"),
        ("tests.model.zoo.toy:Nothing", {}, "'Nothing' in tests.model.zoo.toy is no class with a method blocks"),
        ("tests.model.zoo.toy:Mixer", {}, "'Mixer' in tests.model.zoo.toy is no class with a method blocks"),
        ("os:system", {}, "'system' in os is no class"),
        (TOY, {"depht": 2}, "cannot be made of these options and data: .*depht"),
        (f"{__name__}:Empty", {}, "must give at least one BlockSpec"),
        (f"{__name__}:Free", {}, "the cost of a block is more than 0"),
    ],
)
def test_classes_that_are_no_models(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        zoo.plan(ModelSection.model_validate({"name": name, "stages": 1, "options": options}), helpers.IMAGES)


def test_data_that_it_does_not_take() -> None:
    with pytest.raises(ModelError, match="takes images, not tokens"):
        zoo.plan(ModelSection.model_validate({"name": TOY, "stages": 1}), helpers.TOKENS)


def test_the_documentation_shows_the_example() -> None:
    example = Path(__file__).with_name("toy.py").read_text()
    body = example.partition("from __future__ import annotations\n\n")[2].strip()
    assert body in DOCS.read_text()
    assert len(body.splitlines()) <= 42
