"""The data server as a process: killed, stopped, orphaned. Its blocks lie in a folder of the test."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

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


def is_idle(processes: list[psutil.Process]) -> bool:
    """None of them computes for a quarter of a second."""
    before = [process.cpu_times() for process in processes]
    time.sleep(0.25)
    return before == [process.cpu_times() for process in processes]


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
                # All that is filled ahead is there, so nobody asks a worker for anything.
                await until(partial(is_idle, processes[1:]), timeout=60.0)
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


def test_stopped_workers_are_noticed_and_the_samples_come(tmp_path: Path) -> None:
    async def main() -> None:
        why = list[str]()
        launch = Launch(config(), LOOPBACK, "127.0.0.1", tmp_path)
        async with (
            open_keeper(launch, why.append, Patience(making=3.0, first=0.05)) as keeper,
            feeding(keeper, tmp_path) as feed,
        ):
            await feed.wait_ready()
            processes = family(keeper.pid)
            for worker in processes[1:]:
                worker.suspend()
            batch = await feed.train(0, 32)
            expected = await (await OwnReading.open(config())).train(0, 32)
            assert all(np.array_equal(batch[name], expected[name]) for name in expected)
            assert "a worker did not make samples 0 to" in why[0]
            await until(partial(all_gone, processes), timeout=60.0)

    run(main(), 120.0)


def test_a_client_that_was_stopped_itself_keeps_its_server(tmp_path: Path) -> None:
    """Its loop is blocked for longer than a server may be silent."""

    async def main() -> None:
        launch, lines = Launch(config(), LOOPBACK, "127.0.0.1", tmp_path), 0
        async with open_keeper(launch, patience=Patience(silence=3.0)) as keeper:
            await keeper.wait_samples()
            pid, reading = keeper.pid, asyncio.StreamReader.readline

            async def readline(reader: asyncio.StreamReader) -> bytes:
                nonlocal lines
                text = await reading(reader)
                lines += 1
                return text

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(asyncio.StreamReader, "readline", readline)
                await until(lambda: lines > 0, timeout=30.0)
                asyncio.get_running_loop().call_soon(time.sleep, 4.0)
                await asyncio.sleep(0)
                before = lines
                await until(lambda: lines > before or keeper.pid != pid, timeout=30.0)
            assert (keeper.pid, keeper.phase) == (pid, "serving")

    run(main(), 60.0)


def test_one_that_does_not_end_though_it_is_killed_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one in a call that cannot be broken off, until the end of the test."""
    ended, started = threading.Event(), list[subprocess.Popen[bytes]]()

    class Undying(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

        def poll(self) -> int | None:
            return super().poll() if ended.is_set() else None

        def wait(self, timeout: float | None = None) -> int:
            ended.wait(20.0)
            return super().wait(timeout)

    monkeypatch.setattr("distqat.data.server.keeper.subprocess.Popen", Undying)

    async def main() -> None:
        longest = 0.0

        async def tick() -> None:
            nonlocal longest
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - began)

        launch = Launch(config(), LOOPBACK, "127.0.0.1", tmp_path)
        async with asyncio.TaskGroup() as group:
            async with open_keeper(launch, patience=Patience(end=0.1, killed=0.2)) as keeper:
                await until(lambda: keeper.pid != 0, timeout=30.0)
                process = psutil.Process(keeper.pid)
                ticking = group.create_task(tick())
            assert longest < 10.0
            ticking.cancel()
        await until(partial(all_gone, [process]), timeout=30.0)

    with caplog.at_level("ERROR", "distqat.data.server.keeper"):
        monkeypatch.setattr("distqat.data.server.keeper.log.propagate", True)
        run(main(), 60.0)
    ended.set()
    for process in started:
        process.wait()
    assert "does not end though it is killed" in caplog.text


def test_it_logs_as_its_client_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        loud = Launch(config(), LOOPBACK, "127.0.0.1", tmp_path, "tests.data.server.talkative", "debug", "json")
        async with open_keeper(loud) as keeper:
            await keeper.wait_samples()

    run(main(), 60.0)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith('{"time"')]
    assert ("debug", "opens digits") in [(line["level"], line["message"]) for line in lines]


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
        run(until(partial(all_gone, processes), timeout=30.0), 60.0)
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
