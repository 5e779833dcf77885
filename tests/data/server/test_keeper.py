"""The data server as a process: killed, stopped, orphaned. Its blocks lie in a folder of the test."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from distqat.config import RunConfig, load
from distqat.data.reading import OwnReading, is_served
from distqat.data.server.blocks import leftovers
from distqat.data.server.feed import Feed
from distqat.data.server.keeper import Keeper, Launch, Patience, open_keeper
from distqat.data.server.service import Waits
from distqat.errors import GivenUpError
from distqat.ids import Endpoint
from distqat.rpc.grpc import open_transport
from tests.support import run, until

LOOPBACK = Endpoint("127.0.0.1", 0)

CLIENT = """
import asyncio, json, sys
from pathlib import Path
from distqat.config import load
from distqat.data.server.keeper import Launch, open_keeper
from distqat.ids import Endpoint

async def main():
    config = load(None, ["data.server=on"]).run_config()
    launch = Launch(config, Endpoint("127.0.0.1", 0), "127.0.0.1", Path(sys.argv[1]))
    async with open_keeper(launch) as keeper:
        await keeper.wait_samples()
        sys.stdout.write(json.dumps({"pid": keeper.pid}) + "\\n")
        sys.stdout.flush()
        await asyncio.sleep(600)

asyncio.run(main())
"""


def config(*overrides: str) -> RunConfig:
    return load(None, ["data.server=on", *overrides]).run_config()


def family(pid: int) -> list[psutil.Process]:
    """A server and its workers."""
    server = psutil.Process(pid)
    return [server, *server.children()]


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(map(is_alive, processes))


def has(said: list[str], number: int) -> bool:
    return len(said) == number


@asynccontextmanager
async def feeding(keeper: Keeper, folder: Path) -> AsyncIterator[Feed]:
    async def locate() -> Endpoint:
        return keeper.where()

    async with open_transport() as transport, asyncio.TaskGroup() as group:
        feed = Feed(transport, locate, config().id, folder, Waits(silence=3.0))
        working = group.create_task(feed.work())
        yield feed
        working.cancel()


def test_whatever_happens_to_it_the_next_one_goes_on(tmp_path: Path) -> None:
    """Killed, stopped, and without one of its workers."""

    async def main() -> None:
        own, why = await OwnReading.open(config()), list[str]()
        patience = Patience(silence=3.0, first=0.05)
        launch = Launch(config(), LOOPBACK, "127.0.0.1", tmp_path)
        async with open_keeper(launch, why.append, patience) as keeper, feeding(keeper, tmp_path) as feed:
            held = []
            for number, (victim, how) in enumerate(((0, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGKILL))):
                await feed.wait_ready()
                batch = await feed.train(number * 32, number * 32 + 32)
                held.append(batch)
                assert feed.link == "mapped"
                processes = family(keeper.pid)
                assert len(processes) == 1 + config().data.workers
                processes[victim].send_signal(how)
                await until(partial(has, why, number + 1), timeout=60.0)
                await until(partial(all_gone, processes), timeout=60.0)
                # What it has left is gone, and only the blocks of the new one are there.
                assert {name.split("-")[2] for name in leftovers(tmp_path)} == {str(keeper.pid)}
            assert "killed by signal 9" in why[0]
            assert "said nothing for 3 s" in why[1]
            assert "worker" in why[2]
            for number, batch in enumerate([*held, await feed.train(96, 128)]):
                expected = await own.train(number * 32, number * 32 + 32)
                assert all(np.array_equal(batch[name], expected[name]) for name in expected)
            processes = family(keeper.pid)
        await until(partial(all_gone, processes), timeout=60.0)
        assert leftovers(tmp_path) == []

    run(main(), 150.0)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_it_ends_with_its_client_also_if_that_is_killed(tmp_path: Path, is_stopped: bool) -> None:
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None
        processes = family(json.loads(client.stdout.readline())["pid"])
        assert leftovers(tmp_path)
        if is_stopped:
            processes[0].suspend()
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        end = time.monotonic() + 30.0
        while not all_gone(processes) and time.monotonic() < end:
            time.sleep(0.02)
        assert all_gone(processes)
        assert leftovers(tmp_path) == []
    finally:
        client.kill()
        client.communicate()


def test_one_that_cannot_open_its_data_says_why_and_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distqat.data.server.keeper.RESTARTS", 2)

    async def main() -> None:
        launch = Launch(config("data.source=imagenet"), LOOPBACK, "127.0.0.1", tmp_path)
        said: list[str] = []

        async def keep() -> None:
            async with open_keeper(launch, patience=Patience(first=0.01)) as keeper:
                await until(lambda: keeper.phase == "failed", timeout=60.0)
                said.append(keeper.status)
                await asyncio.Event().wait()

        with pytest.raises(GivenUpError, match="given up after 2 failures in a row: unknown data source 'imagenet'"):
            await keep()
        assert "data server failed: unknown data source 'imagenet'" in said[0]
        assert leftovers(tmp_path) == []

    run(main(), 120.0)


@pytest.mark.parametrize(
    ("source", "server", "served"),
    [
        ("digits", "auto", False),
        ("pydocs", "auto", False),
        ("digits", "on", True),
        ("imagenet", "auto", True),
        ("imagenet", "off", False),
    ],
)
def test_small_sources_are_read_by_each_trainer_unless_it_is_said(source: str, server: str, served: bool) -> None:
    assert is_served(config(f"data.source={source}", f"data.server={server}")) == served
