"""Whose turn it is to work something out, among the processes of this machine.

The work may take hours, so nobody waits until a fixed time. Whoever has the turn holds the lock of a file and signs it
again and again; one that is stopped, or hangs as a whole, holds the lock and signs nothing. Those who wait go by their
own clocks and the changes of the signature, never by the time that it shows.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from distqat.beats import every

SIGNED = 5.0
"""Seconds from one signature to the next."""

SILENCE = 30.0
"""Seconds without a new one after which nobody waits any longer."""

LOOK = 0.2
"""Seconds from one look of those who wait to the next."""

log = logging.getLogger(__name__)


@contextmanager
def at(path: Path) -> Iterator[None]:
    """Within, it is this process's turn at that lock file, or whoever has it has not signed for `SILENCE`: what is done
    within must bear that two do it. Raises OSError when the file cannot be written."""
    # Not emptied by opening: it says who has the turn.
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if _wait(lock, path):
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            with every(SIGNED, partial(os.utime, lock), "signature"):
                yield
        else:
            yield
    finally:
        os.close(lock)


def _wait(lock: int, path: Path) -> bool:
    """Whether it is our turn; False: whoever has it is silent."""
    signature, since = 0, time.monotonic()
    while not _take(lock):
        said, now = os.fstat(lock).st_mtime_ns, time.monotonic()
        if not signature:
            log.info("waiting for process %s, which has %s", _holder(lock), path)
        if said != signature:
            signature, since = said, now
        elif now - since >= SILENCE:
            log.warning(
                "process %s has %s and shows no sign of life for %.0f s: going on without it",
                _holder(lock),
                path,
                now - since,
            )
            return False
        time.sleep(LOOK)
    return True


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: int) -> str:
    return os.pread(lock, 32, 0).decode(errors="replace") or "?"
