"""Files that are made once: whoever comes meanwhile waits for who is alive, and for nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from distqat.data.sources.library import cache, turn

MAKER = """
import sys, time
from distqat.data.sources.library import cache, turn
turn.SIGNED = 0.05

def write(file):
    file.write(b"who")
    file.flush()
    print("half", flush=True)
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        time.sleep(0.01)
    file.write(b"le")

cache.once("name", "key", write)
"""


@contextmanager
def maker(seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process, half done, that takes so long for the rest."""
    command = [sys.executable, "-c", MAKER, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "SILENCE", 0.5)
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
    with maker(1.5) as child, caplog.at_level("INFO"):
        assert cache.once("name", "key", never).read_bytes() == b"whole"
        assert child.wait() == 0
    assert caplog.text.count(f"waiting for process {child.pid}") == 1


def test_who_is_stopped_is_not_waited_for_and_does_no_harm_when_it_wakes(cache_folder: Path) -> None:
    with maker(0.1) as child:
        child.send_signal(signal.SIGSTOP)
        path = cache.once("name", "key", whole)
        assert path.read_bytes() == b"whole"
        # Its half is its own, and stays as long as it lives.
        assert names(cache_folder) == ["", ".lock", ".part"]
        child.send_signal(signal.SIGCONT)
        assert child.wait() == 0
    assert path.read_bytes() == b"whole"
    assert names(cache_folder) == ["", ".lock"]


def test_who_is_killed_is_not_waited_for_and_its_half_is_swept_up(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "SILENCE", 60.0)
    with maker(60.0) as child:
        child.kill()
        child.wait()
    began = time.monotonic()
    assert cache.once("name", "key", whole).read_bytes() == b"whole"
    assert time.monotonic() - began < 10
    [part] = (cache_folder / "distqat" / "data").glob("*.part")
    os.utime(part, (time.time() - 61,) * 2)
    cache.once("name", "other", whole)
    assert not part.exists()


def test_what_fails_leaves_nothing(cache_folder: Path) -> None:
    with pytest.raises(ValueError, match="broken"):
        cache.once("name", "key", broken)
    assert names(cache_folder) == [".lock"]
    assert cache.once("name", "key", whole).read_bytes() == b"whole"
