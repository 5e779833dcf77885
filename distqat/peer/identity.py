"""Who this daemon is: an Ed25519 key in a folder of its own.

Several daemons of one user on one machine each take a numbered slot of the state folder and lock it while they run, so
that each is the same peer again after a restart and no two are the same peer at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distqat.discovery.signing import SigningKey, peer_id
from distqat.errors import IdentityError
from distqat.ids import Endpoint, PeerId

MAX_SLOTS = 256
"""Daemons with one state folder on one machine."""


@dataclass(frozen=True)
class Identity:
    """A peer's key and the folder that it keeps."""

    key: SigningKey
    peer: PeerId
    folder: Path

    def write_endpoint(self, endpoint: Endpoint) -> None:
        """Leave a note for `distqatctl` on this machine: where the daemon answers."""
        note = {"pid": os.getpid(), "peer": self.peer, "endpoint": str(endpoint)}
        (self.folder / "daemon.json").write_text(json.dumps(note))


@contextlib.contextmanager
def open_identity(state_dir: Path) -> Iterator[Identity]:
    """Lock the first free slot of the folder and read its key, made on first use. Raises IdentityError."""
    with _lock_slot(state_dir) as folder:
        key = _read_key(folder / "key")
        yield Identity(key, peer_id(key.public_key), folder)
        (folder / "daemon.json").unlink(missing_ok=True)


def running_endpoints(state_dir: Path) -> list[Endpoint]:
    """Where the daemons of this folder answer, those that are running."""
    found = []
    for folder in sorted(state_dir.expanduser().glob("peer-*"), key=lambda path: int(path.name.split("-")[1])):
        try:
            note = json.loads((folder / "daemon.json").read_text())
            with (folder / "lock").open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(Endpoint.parse(note["endpoint"]))
        except (OSError, ValueError, KeyError):
            continue
    return found


@contextlib.contextmanager
def _lock_slot(state_dir: Path) -> Iterator[Path]:
    root = state_dir.expanduser()
    for slot in range(MAX_SLOTS):
        folder = root / f"peer-{slot}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("ab")
        except OSError as error:
            raise IdentityError(f"cannot use state folder {folder}: {error.strerror}; set daemon.state_dir") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield folder
            return
    raise IdentityError(f"all {MAX_SLOTS} slots of {root} are in use by running daemons; set daemon.state_dir")


def _read_key(path: Path) -> SigningKey:
    if not path.exists():
        key = SigningKey.generate(random.SystemRandom())
        temporary = path.with_suffix(".new")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key.to_bytes())
        temporary.rename(path)
        return key
    try:
        return SigningKey.from_bytes(path.read_bytes())
    except (OSError, IdentityError) as error:
        raise IdentityError(f"cannot read the key {path}: {error}; delete it to become a new peer") from None
