"""A checkpoint is whole or not there, and a changed one is refused by name."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distqat.errors import StateError
from distqat.ids import PipelineId, RunId, StepRef
from distqat.model.agreement import LossScale, Verdict
from distqat.roles.checkpoint import files
from distqat.roles.checkpoint.files import Manifest
from distqat.roles.checkpoint.places import MANIFEST
from distqat.roles.checkpoint.words import Checkpoint

RUN = RunId("digits", "0" * 32)
STEP = StepRef(PipelineId("p1-ab"), 12)
CALLS = ("open", "write", "fsync", "rename", "makedirs")
"""Of `os`, with which a checkpoint gets onto the disk."""


class Killed(BaseException):
    """The process ends here: nothing more is done, and nothing cleaned up."""


def manifest(number: int = 3) -> Manifest:
    held = Checkpoint(1, number, "d", (STEP,), STEP, Verdict(1.0, LossScale(4.0, 2)))
    return Manifest(RUN, "a" * 40, held, {"steps": 2})


def groups(seed: int = 1) -> Mapping[str, Mapping[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "outer": {"anchor/0": torch.randn(40, generator=generator)},
        "local": {"values/a": torch.randn(3, 5, generator=generator), "values/n": torch.tensor([7])},
    }


def same(one: Mapping[str, Mapping[str, Tensor]], other: Mapping[str, Mapping[str, Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys()
        and all(torch.equal(one[name][key], other[name][key]) for key in one[name])
        for name in one
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = files.write(tmp_path, manifest(), groups())
    found, tensors = files.read(folder)
    assert (found.run, found.checkpoint, found.facts) == (RUN, manifest().checkpoint, {"steps": 2})
    assert same(tensors, groups())
    assert folder == tmp_path / RUN.digest / "stage-1" / "round-000003-aaaaaaaa"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def failing(monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException]) -> list[str]:
    """Let the call of that number fail; what was called so far."""
    called: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            called.append(name)
            if len(called) == at:
                raise error()
            return real(*args, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return called


def write_failing(root: Path, at: int, error: Callable[[], BaseException]) -> list[str]:
    """Write a checkpoint with a disk on which one call fails; what was called before that."""
    with pytest.MonkeyPatch.context() as patch:
        called = failing(patch, at, error)
        with contextlib.suppress(StateError, Killed):
            files.write(root, manifest(), groups())
    return called[: at - 1]


def test_a_full_disk_is_told_and_leaves_nothing_behind_at_every_call(tmp_path: Path) -> None:
    good = files.write(tmp_path, manifest(2), groups())
    for at in itertools.count(1):
        with pytest.MonkeyPatch.context() as patch:
            called = failing(patch, at, lambda: OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(StateError, match="no space left on device"):
                files.write(tmp_path, manifest(), groups())
        if "rename" in called[: at - 1]:
            break
        assert [path.name for path in good.parent.iterdir()] == [good.name]
        files.verify(good)
    assert set(called[: at - 1]) == set(CALLS)


def test_a_process_that_dies_at_any_call_leaves_the_whole_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in itertools.count(1):
        root = tmp_path / str(at)
        with monkeypatch.context() as patch:
            # Who is killed cleans nothing up.
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            called = write_failing(root, at, Killed)
        folders = list(root.glob(f"{RUN.digest}/stage-*/round-*"))
        assert bool(folders) == ("rename" in called)
        for folder in folders:
            assert same(files.read(folder)[1], groups())
        # What is left over does not stand in the way of the next one.
        assert same(files.read(files.write(root, manifest(), groups(2)))[1], groups(2))
        if folders:
            break


@pytest.mark.parametrize("name", ["manifest.json", "outer.safetensors", "local.safetensors"])
def test_a_file_that_is_cut_short_changed_or_missing_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = files.write(tmp_path, manifest(), groups())
    path = folder / name
    whole = path.read_bytes()
    for spoilt in (whole[:-1], b"", bytes([*whole[:30], whole[30] ^ 4, *whole[31:]]), whole + b"x"):
        path.write_bytes(spoilt)
        with pytest.raises(StateError, match=name):
            files.read(folder)
    path.unlink()
    with pytest.raises(StateError, match=f"{name}: no such file"):
        files.read(folder)
    path.write_bytes(whole)
    assert same(files.read(folder)[1], groups())


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = files.write(tmp_path, manifest(), groups())
    tree = json.loads((folder / MANIFEST).read_text())
    del tree["check"]
    tree["format"] = 99
    (folder / MANIFEST).write_text(json.dumps(tree | {"check": files._check(tree)}))
    with pytest.raises(StateError, match="of format 99"):
        files.read(folder)


def test_a_checkpoint_without_local_state_is_one_too(tmp_path: Path) -> None:
    bare = Manifest(RUN, "a" * 40, Checkpoint(0, 9, "d"))
    found, tensors = files.read(files.write(tmp_path, bare, {"outer": groups()["outer"]}))
    assert found.checkpoint == bare.checkpoint
    assert set(tensors) == {"outer"}
