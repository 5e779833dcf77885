"""The shared memory: files in memory that one server makes, trainers of the same host map, and the next server clears.

A block's name says the run and the process. The first block of a server is its door: what is written there proves to
who reads it that both are on one host, and its lock, which the system lets go when the process is gone, however it
ended, proves that its blocks are in use.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import re
import secrets
import time
from collections import defaultdict
from pathlib import Path

from distqat.errors import DataError

FOLDER = Path("/dev/shm")
"""Memory that looks like a folder."""

_NAME = re.compile(r"(distqat-[0-9a-f]{1,32}-\d+-[0-9a-f]+)-(door|\d+)")
_DOOR = "door"

EMPTY_SECONDS = 60.0
"""A door is empty for an instant while it is made; after so long its maker is gone."""


class Block:
    """One block, mapped by who made it."""

    def __init__(self, path: Path, size: int) -> None:
        """Raises OSError: there is no memory left."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Now, not when it is written to: that would kill the process where there is no memory.
            os.posix_fallocate(file, 0, size)
            self.view = memoryview(mmap.mmap(file, size))
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(file)
        self.path = path

    def __repr__(self) -> str:
        return f"<Block {self.path.name}, {len(self.view)} bytes>"

    @property
    def name(self) -> str:
        """Under which others map it."""
        return self.path.name


class Blocks:
    """All blocks of one server; made by `open_blocks`."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder = folder
        self._prefix = f"distqat-{digest[:12]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._serial = 0  # Of the last block.
        self.nonce = secrets.token_bytes(32)  # What stands at the door.
        self.door = f"{self._prefix}-{_DOOR}"
        # A file object: two threads may close it, and its number is let go once.
        self._lock = io.FileIO(
            os.open(folder / self.door, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "r+"
        )
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.write(self.nonce)

    def __repr__(self) -> str:
        return f"<Blocks {self._prefix}, {self._serial} made>"

    def make(self, size: int) -> Block:
        """A new block of so many bytes. Raises OSError."""
        self._serial += 1
        return Block(self._folder / f"{self._prefix}-{self._serial}", size)

    def make_slots(self, number: int, least: int, size: int) -> list[Block]:
        """As many as there is memory for, at most `number`. Raises DataError for fewer than the least."""
        slots: list[Block] = []
        try:
            while len(slots) < number:
                slots.append(self.make(size))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            if len(slots) < least:
                raise DataError(
                    f"{self._folder} has no room for {least} slots of {size} bytes; lower data.ring_mib, "
                    "or give the machine more shared memory"
                ) from None
        return slots

    def leave_lock(self) -> None:
        """In a process that was forked: only the server's own end lets it go."""
        self._lock.close()

    def close(self) -> None:
        """Take all names away; who has mapped a block keeps it until it is done. Again, it does nothing."""
        _clear(self._folder, self._prefix)
        self._lock.close()


def sweep(folder: Path = FOLDER) -> int:
    """Remove what servers that are gone have left; how many blocks."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in os.listdir(folder):
        if matched := _NAME.fullmatch(name):
            found[matched[1]].append(name)
    return sum(len(names) for prefix, names in found.items() if _is_left(folder, prefix) and _clear(folder, prefix))


def leftovers(folder: Path = FOLDER) -> list[str]:
    """Names of all blocks that there are, of servers that live and of others."""
    return sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name))


def is_door(name: str, nonce: bytes, folder: Path = FOLDER) -> bool:
    """Whether the block of that name is on this host, may be read, and holds the nonce."""
    matched = _NAME.fullmatch(name)
    if matched is None or matched[2] != _DOOR or not nonce:
        return False
    try:
        return (folder / name).read_bytes() == nonce
    except OSError:
        return False


def map_block(name: str, folder: Path = FOLDER) -> mmap.mmap:
    """The block of that name; what is written to it is nobody else's. It lasts as long as anything refers to it.

    Raises DataError: it is not there, or no block.
    """
    if _NAME.fullmatch(name) is None:
        raise DataError(f"'{name[:80]}' is no name of a block")
    try:
        file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # A private mapping, since torch takes no memory that cannot be written to. Who only reads shares all of it.
            return mmap.mmap(file, os.fstat(file).st_size, access=mmap.ACCESS_COPY)
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        raise DataError(f"the block {name} cannot be mapped: {error}") from None


def map_for_writing(name: str, folder: Path = FOLDER) -> memoryview:
    """The same, shared: for the server's own workers. Raises OSError."""
    file = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(file, os.fstat(file).st_size))
    finally:
        os.close(file)


def _is_left(folder: Path, prefix: str) -> bool:
    """Whether the server of these blocks is gone: its door can be locked, or is not there any more."""
    try:
        file = os.open(folder / f"{prefix}-{_DOOR}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # Of another user.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        door = os.fstat(file)
        return door.st_size > 0 or time.time() - door.st_mtime > EMPTY_SECONDS
    except OSError:
        return False
    finally:
        os.close(file)


def _clear(folder: Path, prefix: str) -> bool:
    """The door last: a server that is gone is known by it."""
    names = sorted((name for name in os.listdir(folder) if name.startswith(f"{prefix}-")), key=lambda n: _DOOR in n)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return bool(names)
