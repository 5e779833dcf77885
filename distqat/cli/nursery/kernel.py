"""The few things that Linux does with processes and Python has no name for."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SET_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36


def can_adopt() -> bool:
    """Whether this system can do what follows."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        with adopting():
            os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False  # An old kernel, or a container that forbids it.
    return True


@contextmanager
def adopting() -> Iterator[None]:
    """Whatever among the descendants of this process loses its parent meanwhile becomes a child of this process."""
    _prctl(_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_SET_CHILD_SUBREAPER, 0)


def die_with_parent(parent: int) -> bool:
    """Let the kernel kill this process when its parent has died; False: somebody else is its parent already."""
    _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    return os.getppid() == parent


def num_threads() -> int:
    """Of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def _prctl(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
