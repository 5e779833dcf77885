"""`--resume`: go on with a run, or leave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distqat import config
from distqat.discovery.view import Snapshot
from distqat.errors import DistqatError, NothingToResumeError
from distqat.peer.resuming import GRACE_SECONDS, insist
from distqat.roles.context import RunHolder
from distqat.roles.history import History
from distqat.rpc.transport import Deadline
from tests.support import run_virtual

CONFIG = config.load().run_config()


class Quiet:
    """A directory in which nothing happens."""

    async def wait_synced(self) -> None:
        await asyncio.sleep(1.0)

    def snapshot(self) -> Snapshot:
        return Snapshot(run=CONFIG.id)

    async def wait_changed(self, version: int, deadline: Deadline) -> None:
        await asyncio.sleep(0.5)


def context(history: History, folder: Path) -> Any:
    settings = config.load()
    return SimpleNamespace(
        run=RunHolder(), directory=Quiet(), history=history, settings=settings, state_dir=folder / "state"
    )


def test_without_a_past_the_daemon_leaves_and_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults: list[DistqatError] = []
        daemon, loop = context(History(), tmp_path), asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(insist(daemon, faults.append))
            # It is no fault of the run that nobody has told of it yet.
            await asyncio.sleep(10 * GRACE_SECONDS)
            assert not faults
            daemon.run.set(CONFIG)
            begin = loop.time()
        assert loop.time() - begin == GRACE_SECONDS
        (fault,) = faults
        assert isinstance(fault, NothingToResumeError)
        assert f"there is nothing of run {CONFIG.id} to go on with" in fault.reason

    run_virtual(scenario())


def test_a_checkpoint_that_is_found_here_is_a_past(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults: list[DistqatError] = []
        history = History(tmp_path)
        daemon = context(history, tmp_path)
        daemon.run.set(CONFIG)
        async with asyncio.TaskGroup() as group:
            group.create_task(insist(daemon, faults.append))
            await asyncio.sleep(GRACE_SECONDS / 2)
            history.remember(CONFIG.id)
        assert not faults
        # After a restart it is known at once.
        assert History(tmp_path).has_committed(CONFIG.id)

    run_virtual(scenario())


def test_a_checkpoint_on_the_disk_is_a_past_before_anybody_has_looked_through_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults: list[DistqatError] = []
        daemon, loop = context(History(), tmp_path), asyncio.get_running_loop()
        folder = tmp_path / "state" / "checkpoints" / CONFIG.id.digest / "stage-1" / "round-000040-0123abcd"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        daemon.run.set(CONFIG)
        begin = loop.time()
        await insist(daemon, faults.append)
        assert not faults
        assert loop.time() - begin < GRACE_SECONDS

    run_virtual(scenario())
