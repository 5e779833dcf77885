"""Files that were worked out once on this machine, each under a key of all that it depends on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from distqat.errors import DataError

log = logging.getLogger(__name__)


def folder() -> Path:
    """`distqat` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distqat" / "data"


def once(name: str, key: object, write: Callable[[BinaryIO], None]) -> Path:
    """The file that `write` writes, made unless it is there. Whoever comes while it is made waits, and makes it anew if
    that process dies. Raises DataError when there is no room for it, and what `write` raises."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = folder() / f"{name}-{digest}"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                log.info("working out %s, once on this machine", path)
                _write(path, write)
    except OSError as error:
        raise DataError(f"cannot keep {path}: {error.strerror or error}") from None
    return path


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Whole or not at all; what another process left half done is overwritten."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
