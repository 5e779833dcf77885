"""Known peers on disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from distqat.discovery.known import KnownPeers
from distqat.ids import Endpoint

ALICE, BOB, CAROL = Endpoint("alice", 1), Endpoint("bob", 2), Endpoint("::1", 3)


def test_the_latest_come_first_and_survive_a_restart(tmp_path: Path) -> None:
    known = KnownPeers(tmp_path / "state" / "known_peers.json")
    for endpoint in (ALICE, BOB, CAROL, ALICE):
        known.seen(endpoint)
    known.save()
    again = KnownPeers(known.path)
    again.load()
    assert again.endpoints == known.endpoints == [ALICE, CAROL, BOB]
    assert again.others({ALICE}) == [CAROL, BOB]
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["known_peers.json"]


def test_there_is_a_cap(tmp_path: Path) -> None:
    known = KnownPeers(tmp_path / "known.json", cap=2)
    for endpoint in (ALICE, BOB, CAROL):
        known.seen(endpoint)
    assert known.endpoints == [CAROL, BOB]
    assert repr(known) == "<KnownPeers 2>"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"peers": 3}', '{"peers": ["nowhere"]}', '{"peers": [4]}', "\x00"])
def test_a_damaged_file_is_a_warning_only(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "known.json"
    file.write_text(text)
    known = KnownPeers(file)
    with caplog.at_level(logging.WARNING):
        known.load()
    assert known.endpoints == []
    assert "is damaged" in caplog.text
    known.seen(ALICE)
    known.save()
    assert json.loads(file.read_text()) == {"peers": ["alice:1"]}


def test_a_missing_file_is_nothing_to_speak_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    KnownPeers(tmp_path / "missing.json").load()
    assert caplog.text == ""


def test_a_folder_that_cannot_be_written_is_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    known = KnownPeers(tmp_path / "file" / "known.json")
    known.seen(ALICE)
    known.save()
    assert "cannot write" in caplog.text


def test_without_a_path_nothing_is_written() -> None:
    known = KnownPeers()
    known.load()
    known.seen(ALICE)
    known.save()
    assert known.endpoints == [ALICE]
