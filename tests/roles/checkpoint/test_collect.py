"""Which checkpoints make a moment of a run, and what is said when none do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from distqat.config import RunConfig
from distqat.errors import ModelError, StateError
from distqat.model.stage import Stage
from distqat.roles.checkpoint import files
from distqat.roles.checkpoint.collect import collect
from distqat.roles.checkpoint.files import CONFIG
from distqat.roles.checkpoint.places import MANIFEST
from tests.model import helpers
from tests.roles import written

CONFIG_OF_ALL = written.run("mlp", 2)


@pytest.fixture(scope="module")
def chain() -> Sequence[Stage]:
    return helpers.chain(CONFIG_OF_ALL, helpers.IMAGES)


def test_the_newest_moment_that_all_stages_have_is_taken(tmp_path: Path, chain: Sequence[Stage]) -> None:
    written.write(tmp_path / "a", CONFIG_OF_ALL, chain, 4, 40)
    both = written.write(tmp_path / "b", CONFIG_OF_ALL, chain, 6, 60)
    written.write(tmp_path / "a", CONFIG_OF_ALL, chain[:1], 8, 80)
    for roots in ([tmp_path], [tmp_path / "a", tmp_path / "b"]):
        moment = collect(roots, None)
        assert (moment.config, moment.run) == (CONFIG_OF_ALL, CONFIG_OF_ALL.id)
        assert moment.folders == dict(enumerate(folder.resolve() for folder in both))
        assert (moment.rounds, moment.is_exact) == ((6, 6), True)


def test_without_a_common_moment_the_newest_of_each_stage_are(tmp_path: Path, chain: Sequence[Stage]) -> None:
    written.write(tmp_path, CONFIG_OF_ALL, chain[:1], 8, 80)
    written.write(tmp_path, CONFIG_OF_ALL, chain[1:], 6, 60)
    written.write(tmp_path, CONFIG_OF_ALL, chain[1:], 4, 40)
    moment = collect([tmp_path], None)
    assert (moment.rounds, moment.is_exact) == ((8, 6), False)


def test_folders_of_the_stages_themselves_will_do(tmp_path: Path, chain: Sequence[Stage]) -> None:
    folders = written.write(tmp_path, CONFIG_OF_ALL, chain)
    assert collect(folders, CONFIG_OF_ALL).rounds == (4, 4)


def test_a_stage_that_is_missing_is_named(tmp_path: Path, chain: Sequence[Stage]) -> None:
    written.write(tmp_path, CONFIG_OF_ALL, chain[:1])
    with pytest.raises(
        StateError, match=r"no whole checkpoint of stage 1 of 2 of run .* name the folders of the other"
    ):
        collect([tmp_path], None)


def test_a_checkpoint_that_was_changed_counts_for_nothing_and_is_named(tmp_path: Path, chain: Sequence[Stage]) -> None:
    folder = written.write(tmp_path, CONFIG_OF_ALL, chain)[1]
    with (folder / "outer.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(StateError, match=rf"of stage 1 of 2 .*{folder.name}/outer.safetensors was changed"):
        collect([tmp_path], None)
    shutil.rmtree(folder.parents[1] / "stage-0")
    with pytest.raises(StateError, match=r"no whole checkpoint lies below .* was changed"):
        collect([tmp_path], None)


def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no whole checkpoint lies below .*nowhere"):
        collect([tmp_path / "nowhere"], None)


def test_of_several_runs_the_config_chooses(tmp_path: Path, chain: Sequence[Stage]) -> None:
    other = written.run("mlp", 2, run={"name": "other"})
    written.write(tmp_path, CONFIG_OF_ALL, chain)
    written.write(tmp_path, other, chain)
    with pytest.raises(StateError, match=r"several runs lie below .*: digits@.*, other@.*; name the folder of one"):
        collect([tmp_path], None)
    assert collect([tmp_path], other).run == other.id
    third = written.run("mlp", 2, run={"name": "third"})
    with pytest.raises(StateError, match=r"no checkpoint of run third@.* of others there are: digits@.*, other@"):
        collect([tmp_path], third)


def rewritten(folder: Path, config: str | None, digest: str = CONFIG_OF_ALL.id.digest) -> None:
    """The checkpoint with another word on its config, and another digest; the hash of the manifest is right."""
    tree = json.loads((folder / MANIFEST).read_text())
    tree.pop("check")
    tree["run"]["digest"] = digest
    tree["facts"] = {} if config is None else {CONFIG: config}
    (folder / MANIFEST).write_text(json.dumps({**tree, "check": files._check(tree)}))


def test_a_config_with_fewer_settings_than_now_is_the_same_run(tmp_path: Path, chain: Sequence[Stage]) -> None:
    """A newer version gives the same config another digest."""
    tree = json.loads(CONFIG_OF_ALL.canonical())
    del tree["quant"]["slice_bits"]
    older = RunConfig.model_validate(tree).model_copy(update={"run": CONFIG_OF_ALL.run})
    assert older == CONFIG_OF_ALL
    for folder in written.write(tmp_path, CONFIG_OF_ALL, chain):
        rewritten(folder, json.dumps(tree), "0" * 32)
    for config in (None, CONFIG_OF_ALL):
        moment = collect([tmp_path], config)
        assert (moment.run.digest, moment.config) == ("0" * 32, CONFIG_OF_ALL)


def test_checkpoints_that_do_not_say_their_config_need_it(tmp_path: Path, chain: Sequence[Stage]) -> None:
    for folder in written.write(tmp_path, CONFIG_OF_ALL, chain):
        rewritten(folder, None)
    with pytest.raises(StateError, match="do not say its config; give it with --config"):
        collect([tmp_path], None)
    assert collect([tmp_path], CONFIG_OF_ALL).rounds == (4, 4)


def test_code_of_others_is_not_imported_just_so(tmp_path: Path, chain: Sequence[Stage]) -> None:
    """Importing the module would end the process."""
    foreign = RunConfig.model_validate({"model": {"name": "lib2to3.__main__:X", "stages": 2}})
    written.write(tmp_path, foreign, chain)
    with pytest.raises(ModelError, match="is code; if it may be run here, name the run's --config"):
        collect([tmp_path], None)
    assert collect([tmp_path], foreign).config == foreign
