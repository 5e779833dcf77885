"""Files that are made once: whoever comes meanwhile waits for who is alive, and for nobody else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from distqat.data.sources.library import cache, turn
from distqat.errors import DataError

MAKER = """
import sys
from distqat.data.sources.library import cache, turn
turn.SIGNED = 0.05

def write(file):
    file.write(b"who")
    file.flush()
    print("half", flush=True)
    sys.stdin.readline()
    file.write(b"le")

cache.once("name", "key", write)
"""


@contextmanager
def maker() -> Iterator[subprocess.Popen[str]]:
    """Another process, half done, that does the rest when it is told."""
    command = [sys.executable, "-c", MAKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        try:
            yield child
        finally:
            child.kill()


def go_on(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "SILENCE", 1.0)
    monkeypatch.setattr(turn, "LOOK", 0.01)


def whole(file: BinaryIO) -> None:
    file.write(b"whole")


def broken(file: BinaryIO) -> None:
    file.write(b"half")
    raise ValueError("broken")


def never(file: BinaryIO) -> None:
    raise AssertionError("made twice")


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in (folder / "distqat" / "data").iterdir())


def test_it_is_made_once(cache_folder: Path) -> None:
    path = cache.once("name", "key", whole)
    assert cache.once("name", "key", never) == path
    assert path.read_bytes() == b"whole"
    assert cache.once("name", "other", whole) != path
    assert names(cache_folder) == ["", "", ".lock", ".lock"]


def test_who_is_slow_and_alive_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with maker() as child, caplog.at_level("INFO"):
        later = threading.Timer(2 * turn.SILENCE, go_on, [child])
        later.start()
        assert cache.once("name", "key", never).read_bytes() == b"whole"
        later.join()
        assert child.wait() == 0
    assert caplog.text.count(f"waiting for process {child.pid}") == 1


def test_who_is_stopped_is_not_waited_for_and_does_no_harm_when_it_wakes(cache_folder: Path) -> None:
    with maker() as child:
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        path = cache.once("name", "key", whole)
        assert path.read_bytes() == b"whole"
        # Its half is its own, and stays as long as it lives.
        assert names(cache_folder) == ["", ".lock", ".part"]
        child.send_signal(signal.SIGCONT)
        go_on(child)
        assert child.wait() == 0
    assert path.read_bytes() == b"whole"
    assert names(cache_folder) == ["", ".lock"]


def test_who_is_killed_is_not_waited_for_and_its_half_is_swept_up(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "SILENCE", 60.0)
    with maker() as child:
        child.kill()
        child.wait()
    began = time.monotonic()
    assert cache.once("name", "key", whole).read_bytes() == b"whole"
    assert time.monotonic() - began < 10
    [part] = (cache_folder / "distqat" / "data").glob("*.part")
    os.utime(part, (time.time() - 61,) * 2)
    cache.once("name", "other", whole)
    assert not part.exists()


def _work_out(name: str) -> None:
    def write(file: BinaryIO) -> None:
        with Path(name).open("a") as log:
            log.write("written\n")
        file.write(b"x" * 1000)

    cache.once("name", {"key": 1}, write)


def test_two_processes_work_a_thing_out_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_work_out, args=(str(tmp_path / "log"),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "written\n"


def test_a_cache_that_cannot_be_written_is_named(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = cache_folder / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(DataError, match="cannot keep"):
        cache.once("test", {"key": 3}, lambda file: None)


def test_what_fails_leaves_nothing(cache_folder: Path) -> None:
    with pytest.raises(ValueError, match="broken"):
        cache.once("name", "key", broken)
    assert names(cache_folder) == [".lock"]
    assert cache.once("name", "key", whole).read_bytes() == b"whole"
