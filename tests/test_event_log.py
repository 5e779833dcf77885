"""A daemon's events in memory and on disk: over restarts, torn lines, full files, and folders that are none."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distqat.errors import ConfigError
from distqat.event_log import KEPT_EVENTS, EventLog, file_name, predecessor, read_events
from distqat.events import Kind, Subject

DAEMON = "a" * 40


def make(serial: int = 0) -> EventLog:
    """A log whose clocks count the looks at them."""
    ticks = iter(range(1_000_000))
    return EventLog(DAEMON, serial, lambda: float(next(ticks)), lambda: 1_000.0 + next(ticks))


def say(log: EventLog, *texts: str) -> None:
    for text in texts:
        log.record(Kind.STARTED, text)


def texts(path: Path) -> list[str]:
    return [event.text for event in read_events(path).events]


def test_events_are_counted_stamped_and_told_after_a_serial() -> None:
    log = make(serial=100)
    event = log.record(Kind.LOST, "lost\nbob  now", Subject(peer="b", how="silence"))
    assert (event.serial, event.daemon, event.text) == (101, DAEMON, "lost bob now")
    assert (event.monotonic, event.wall) == (0.0, 1_001.0)
    say(log, "one", "two")
    assert [e.serial for e in log.since(0)] == [101, 102, 103]
    assert [e.text for e in log.since(102)] == ["two"]
    assert log.since(103) == []
    # The serial of a life whose clock was ahead.
    assert len(log.since(1_000)) == 3
    with pytest.raises(ValueError, match="without peer, how"):
        log.record(Kind.LOST, "whom?")
    assert log.serial == 103


def test_what_is_kept_in_memory_is_bounded() -> None:
    log = make()
    say(log, *map(str, range(KEPT_EVENTS + 3)))
    assert (len(log.since(0)), log.since(0)[0].text) == (KEPT_EVENTS, "3")


def test_the_file_holds_what_came_before_it_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "run" / file_name("aaaaaaaa")
    first = make(serial=1)
    say(first, "before")
    assert not path.exists()
    first.keep_in(path)
    say(first, "after")
    # It was killed: nothing is closed, and nothing waits to be written.
    assert texts(path) == ["before", "after"]
    second = make(serial=50)
    second.keep_in(path)
    say(second, "again")
    second.close()
    say(second, "only in memory")
    found = read_events(path)
    assert [(event.serial, event.text) for event in found.events] == [(2, "before"), (3, "after"), (51, "again")]
    assert found.unread == 0
    first.close()


@pytest.mark.parametrize("tear", [b'{"serial": 9, "wall": 1', b"\xff\xfe\x00", b'{"serial"'])
def test_a_torn_last_line_costs_that_line_alone(tmp_path: Path, tear: bytes) -> None:
    path = tmp_path / file_name("aaaaaaaa")
    log = make()
    log.keep_in(path)
    say(log, "whole")
    log.close()
    with path.open("ab") as file:
        file.write(tear)
    again = make(serial=10)
    again.keep_in(path)
    say(again, "after")
    again.close()
    found = read_events(path)
    assert [event.text for event in found.events] == ["whole", "after"]
    assert found.unread == 1


def test_a_full_file_is_moved_aside_and_one_before_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / file_name("aaaaaaaa")
    log = make()
    log.keep_in(path, max_bytes=1_000)
    say(log, *(f"number {number:03}" for number in range(40)))
    log.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["events-aaaaaaaa.1.jsonl", "events-aaaaaaaa.jsonl"]
    assert path.stat().st_size <= 1_000
    assert predecessor(path).stat().st_size <= 1_000
    kept = texts(tmp_path)
    assert kept == [f"number {number:03}" for number in range(40 - len(kept), 40)]
    assert len(kept) > len(texts(path)) > 0


def test_a_folder_that_is_a_file_harms_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.write_text("not a folder")
    log = make()
    with caplog.at_level(logging.INFO, "distqat"):
        log.keep_in(folder / file_name("aaaaaaaa"))
        say(log, "one", "two", "three")
        assert [event.text for event in log.since(0)] == ["one", "two", "three"]
        assert len([r for r in caplog.records if "cannot write events" in r.getMessage()]) == 1
        assert "faulty" in repr(log)
        # Once somebody has made room it goes on.
        folder.unlink()
        say(log, "four")
    assert texts(folder) == ["four"]
    assert "again" in caplog.records[-1].getMessage()
    log.close()


def test_a_full_disk_costs_the_lines_that_had_no_room(tmp_path: Path) -> None:
    path = tmp_path / file_name("aaaaaaaa")
    log = make()
    log.keep_in(path)
    say(log, "before")
    with at_most(path.stat().st_size + 20):
        say(log, "torn", "not there")
    say(log, "after")
    log.close()
    found = read_events(path)
    assert ([event.text for event in found.events], found.unread) == (["before", "after"], 1)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Within, no file grows beyond so many bytes: the system writes what there is room for, then refuses."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_each_line_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write

    def noted(number: int, data: bytes) -> int:
        written.append(data)
        return write(number, data)

    monkeypatch.setattr(os, "write", noted)
    log = make()
    log.keep_in(tmp_path / "events.jsonl")
    say(log, "one", "two")
    log.close()
    assert [json.loads(line)["text"] for line in written] == ["one", "two"]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_events(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="no event files"):
        read_events(tmp_path)


def test_a_disk_that_says_at_the_end_that_it_is_full_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make()
    log.keep_in(tmp_path / "events.jsonl")
    say(log, "one")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(os, "close", full)
        say(log, "two")
    say(log, "three")
    log.close()
    assert texts(tmp_path / "events.jsonl") == ["one", "three"]
