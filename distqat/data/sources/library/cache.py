"""Files that were worked out once on this machine, each under a key of all that it depends on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from distqat.data.sources.library import turn
from distqat.errors import DataError

log = logging.getLogger(__name__)


def folder() -> Path:
    """`distqat` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distqat" / "data"


def once(name: str, key: object, write: Callable[[BinaryIO], None]) -> Path:
    """The file that `write` writes, made unless it is there. Whoever comes while it is made waits, and makes it anew if
    that process dies, or does not get on (`turn`). Raises DataError when there is no room for it, and what `write`
    raises."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = folder() / f"{name}-{digest}"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with turn.at(path.with_suffix(".lock")):
            if not path.exists():
                log.info("working out %s, once on this machine", path)
                _sweep(path.parent)
                _write(path, write)
    except OSError as error:
        raise DataError(f"cannot keep {path}: {error.strerror or error}") from None
    return path


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Whole or not at all. Nobody else writes the same part: who held the turn may wake after it was given up."""
    part = path.with_name(f"{path.name}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            # For as long as it lives; see `_sweep`.
            fcntl.flock(file, fcntl.LOCK_EX)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Delete what dead processes left half done. A stopped one still holds the lock of its part."""
    for part in folder.glob("*.part"):
        with suppress(FileNotFoundError, BlockingIOError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that is new may be about to be locked.
            if time.time() - os.fstat(file.fileno()).st_mtime > turn.SILENCE:
                part.unlink(missing_ok=True)
