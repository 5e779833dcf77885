"""The checkpoints of a daemon: written beside whatever goes on, found again, the oldest removed, and never fatal."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distqat.errors import StateError
from distqat.events import Kind
from distqat.ids import PipelineId, RunId, StepRef
from distqat.roles.checkpoint import files
from distqat.roles.checkpoint.files import Manifest
from distqat.roles.checkpoint.keeper import Keeper
from distqat.roles.checkpoint.words import Checkpoint

RUN = RunId("digits", "0" * 32)
ME = "a" * 40
CUT = (StepRef(PipelineId("p"), 1),)


def manifest(number: int, stage: int = 0, run: RunId = RUN, peer: str = ME) -> Manifest:
    return Manifest(run, peer, Checkpoint(stage, number, f"{stage}:{number}", CUT))


def groups(number: float) -> Mapping[str, Mapping[str, Tensor]]:
    return {"outer": {"anchor/0": torch.full((9,), float(number))}}


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


@asynccontextmanager
async def opened(root: Path, most: int = 2) -> AsyncIterator[Keeper]:
    """A keeper at work."""
    keeper = Keeper(root, RUN, ME, most)
    await keeper.scan()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(keeper.work())
        yield keeper
        task.cancel()


async def write(keeper: Keeper, number: int, stage: int = 0) -> None:
    keeper.offer(manifest(number, stage), groups(number))
    await keeper.wait_idle()


def rounds(keeper: Keeper) -> list[tuple[int, int]]:
    return [(held.stage, held.round) for held in keeper.checkpoints]


def test_the_newest_of_each_stage_are_kept_and_found_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as keeper:
            for number in (1, 2, 3):
                await write(keeper, number)
            await write(keeper, 2, stage=1)
            assert rounds(keeper) == [(0, 3), (0, 2), (1, 2)]
            assert keeper.status().fault == ""
        async with opened(tmp_path) as again:
            assert again.checkpoints == keeper.checkpoints
            found, tensors = await again.read(0, 2, "0:2")
            assert found.checkpoint.round == 2
            assert torch.equal(tensors["outer"]["anchor/0"], torch.full((9,), 2.0))
            assert again.status().age < 60.0

    run(scenario())


def test_a_course_that_the_run_has_left_is_removed_with_the_next_checkpoint(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, most=3) as keeper:
            for number in (10, 20, 30):
                await write(keeper, number)
            await write(keeper, 11)
            assert rounds(keeper) == [(0, 11), (0, 10)]

    run(scenario())


def test_rounds_are_counted_not_spelt(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as keeper:
            for number in (999_998, 999_999, 1_000_000, 1_000_001):
                await write(keeper, number)
            assert rounds(keeper) == [(0, 1_000_001), (0, 1_000_000)]

    run(scenario())


def test_one_that_is_of_no_use_is_offered_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as keeper:
            await write(keeper, 1)
            await write(keeper, 2)
            keeper.refuse(0, "0:2", "it is of another optimizer")
            assert rounds(keeper) == [(0, 1)]
            assert keeper.status().fault == "it is of another optimizer"

    run(scenario())


def test_one_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if source.name.endswith(".new") and "-old" not in source.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    async def scenario() -> None:
        async with opened(tmp_path) as keeper:
            await write(keeper, 1)
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", rename)
                await write(keeper, 1)
            assert "failed: input/output error" in keeper.status().fault
            await keeper.read(0, 1, "0:1")
            await write(keeper, 1)
            await keeper.read(0, 1, "0:1")
            assert len(list((tmp_path / RUN.digest / "stage-0").iterdir())) == 1

    run(scenario())


def test_a_spoilt_one_is_refused_by_name_and_the_next_older_one_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as keeper:
            await write(keeper, 1)
            await write(keeper, 2)
            path = files.folder_of(tmp_path, manifest(2)) / "outer.safetensors"
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            # One that was spoilt after it was found is refused when it is to be read.
            with pytest.raises(StateError, match=r"outer\.safetensors was changed"):
                await keeper.read(0, 2, "0:2")
            assert rounds(keeper) == [(0, 1)]
        async with opened(tmp_path) as again:
            assert rounds(again) == [(0, 1)]
            assert "round-000002-aaaaaaaa/outer.safetensors was changed" in again.status().fault
            with pytest.raises(StateError):
                await again.read(0, 2, "0:2")
            await again.read(0, 1, "0:1")

    run(scenario())


def test_a_full_disk_is_shown_and_the_next_one_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario() -> None:
        async with opened(tmp_path) as keeper:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                await write(keeper, 1)
                assert keeper.status().fault.startswith("checkpoint of round 1 failed: no space left on device")
                assert keeper.status().fault.endswith("there is none yet")
            await write(keeper, 2)
            assert keeper.status().fault == ""
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                await write(keeper, 3)
                assert keeper.status().fault.endswith("the last good one is of round 2")
            assert rounds(keeper) == [(0, 2)]

    run(scenario())


def test_while_one_is_being_written_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        go_on, real = threading.Event(), files.write

        def slow(*args: Any) -> Path:
            go_on.wait(60)
            return real(*args)

        monkeypatch.setattr(files, "write", slow)
        async with opened(tmp_path) as keeper:
            keeper.offer(manifest(1), groups(1))
            assert keeper.is_busy(0)
            assert not keeper.is_busy(1)
            keeper.offer(manifest(2), groups(2))
            go_on.set()
            await keeper.wait_idle()
            assert rounds(keeper) == [(0, 1)]

    run(scenario())


def test_others_and_other_runs_are_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        other = RunId("digits", "1" * 32)
        files.write(tmp_path, manifest(7, run=other), groups(7))
        sibling = files.write(tmp_path, manifest(1, peer="b" * 40), groups(1))
        async with opened(tmp_path, most=1) as keeper:
            # In a folder that daemons share, what a sibling has written is of use too.
            assert rounds(keeper) == [(0, 1)]
            await write(keeper, 2)
            await write(keeper, 3)
            assert rounds(keeper) == [(0, 3), (0, 1)]
        assert sibling.exists()
        assert files.folder_of(tmp_path, manifest(7, run=other)).exists()

    run(scenario())


def test_what_becomes_of_checkpoints_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Path:
        raise StateError("no space left on device")

    async def scenario() -> None:
        async with opened(tmp_path) as keeper:
            await write(keeper, 1)
            keeper.refuse(0, "0:1", "it is of another stage")
            monkeypatch.setattr(files, "write", full)
            await write(keeper, 2)
            told = [(event.kind, event.subject.stage, event.subject.round) for event in keeper.events.since(0)]
            assert told == [
                (Kind.CHECKPOINT_WRITTEN, "0", 1),
                (Kind.CHECKPOINT_REFUSED, "0", 1),
                (Kind.CHECKPOINT_FAILED, "0", 2),
            ]

    run(scenario())
