"""Where a daemon that was started here answers: only what this very process has noted counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distqat.cli.daemons import Daemon, address_of
from distqat.ids import Endpoint


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            yield Daemon("alice", process, tmp_path / "alice.out")
        finally:
            process.kill()


def test_the_note_of_its_own_process_says_where_it_answers(daemon: Daemon) -> None:
    assert address_of(daemon) is None
    note = daemon.output.parent / "states" / "alice" / "peer-0" / "daemon.json"
    note.parent.mkdir(parents=True)
    told = {"pid": daemon.process.pid, "peer": "a", "endpoint": "127.0.0.1:7700"}
    # What it left in an earlier life, and what is half written.
    for text in (json.dumps({**told, "pid": daemon.process.pid + 1}), json.dumps(told)[:20], "{}"):
        note.write_text(text)
        assert address_of(daemon) is None
    note.write_text(json.dumps(told))
    assert address_of(daemon) == Endpoint("127.0.0.1", 7700)
