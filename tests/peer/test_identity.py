"""Keys on disk: the same peer after a restart, never two at once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from distqat.errors import IdentityError
from distqat.ids import Endpoint
from distqat.peer.identity import open_identity, running_endpoints


def test_a_daemon_is_the_same_peer_after_a_restart(tmp_path: Path) -> None:
    with open_identity(tmp_path) as first:
        name = first.peer
    with open_identity(tmp_path) as again:
        assert again.peer == name
    assert stat.S_IMODE((tmp_path / "peer-0" / "key").stat().st_mode) == 0o600


def test_two_daemons_at_once_are_two_peers(tmp_path: Path) -> None:
    with open_identity(tmp_path) as first, open_identity(tmp_path) as second:
        assert first.peer != second.peer
        assert {first.folder.name, second.folder.name} == {"peer-0", "peer-1"}


def test_the_daemons_that_run_here_are_found(tmp_path: Path) -> None:
    assert running_endpoints(tmp_path) == []
    with open_identity(tmp_path) as first, open_identity(tmp_path) as second:
        first.write_endpoint(Endpoint("127.0.0.1", 1))
        second.write_endpoint(Endpoint("127.0.0.1", 2))
        assert running_endpoints(tmp_path) == [Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2)]
    assert running_endpoints(tmp_path) == []


def test_the_note_of_a_daemon_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    with open_identity(tmp_path) as identity:
        identity.write_endpoint(Endpoint("127.0.0.1", 1))
        note = (identity.folder / "daemon.json").read_text()
    (tmp_path / "peer-0" / "daemon.json").write_text(note)
    assert running_endpoints(tmp_path) == []


def test_a_damaged_key_is_refused_and_the_file_named(tmp_path: Path) -> None:
    (tmp_path / "peer-0").mkdir()
    (tmp_path / "peer-0" / "key").write_bytes(b"short")
    with pytest.raises(IdentityError, match="peer-0/key"), open_identity(tmp_path):
        pass


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="file"), open_identity(tmp_path / "file" / "states"):
        pass
