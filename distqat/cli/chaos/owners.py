"""Which process on this machine holds a connection; of many at once, since every look reads every socket.

The kernel says so in `/proc/net/tcp` (the inode of a socket) and `/proc/PID/fd` (who has that inode open).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

End = tuple[int, int]
"""A connection as its dialler has it: its own port, and the one that it has dialled."""

_PREFIX, _SUFFIX = "socket:[", "]"


TABLES = Path("/proc/net")


def owners(ends: Collection[End], pids: Iterable[int], tables: Path = TABLES) -> Mapping[End, int]:
    """By connection, which of the processes holds it; those that none of them holds are left out."""
    inodes = _inodes(ends, tables)
    found: dict[End, int] = {}
    for pid in pids:
        if len(found) == len(inodes):
            break
        for inode in _sockets(pid):
            if inode in inodes:
                found[inodes[inode]] = pid
    return found


def _inodes(ends: Collection[End], tables: Path) -> dict[str, End]:
    """By inode; gRPC dials IPv4 addresses through IPv6 sockets too, where the kernel has them."""
    # As the table writes them, so that most lines need not be taken apart.
    wanted = {f"{port:04X}": port for port, _ in ends}
    found: dict[str, End] = {}
    for table in (tables / "tcp", tables / "tcp6"):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            columns = line.split(maxsplit=10)
            port = wanted.get(columns[1].rpartition(":")[2])
            if port is not None and (end := (port, int(columns[2].rpartition(":")[2], 16))) in ends:
                found[columns[9]] = end
    return found


def _sockets(pid: int) -> Iterator[str]:
    """Inodes of the sockets that a process has open; none if it has just ended."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as files:
            links = [_target(file.path) for file in files]
    except OSError:
        return
    for link in links:
        if link.startswith(_PREFIX):
            yield link[len(_PREFIX) : -len(_SUFFIX)]


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
