"""A daemon's own events: the last ones in memory, for who asks, and all of them in a file that is only appended to.

One JSON object a line. Neither a full disk nor a missing folder harms the daemon: it says so once, goes on without the
file, and writes again when it can. Lines that were torn by a kill are passed over by who reads.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distqat.errors import ConfigError
from distqat.events import NOTHING, Event, Kind, Subject, sentence

log = logging.getLogger(__name__)

KEPT_EVENTS = 4096
"""Events that a daemon keeps in memory; older ones are in its file."""

MAX_FILE_BYTES = 8 << 20
"""A file that would grow beyond this takes the place of the one before it; so at most twice as much is kept."""

Clock = Callable[[], float]


def file_name(daemon: str) -> str:
    """Of the file of that daemon; the one before it ends in `.1.jsonl`."""
    return f"events-{daemon}.jsonl"


class EventLog:
    """Takes the events of one daemon."""

    def __init__(
        self, daemon: str = "", serial: int = 0, monotonic: Clock = time.monotonic, wall: Clock = time.time
    ) -> None:
        """`serial` is one that no earlier life of this daemon has used, and less than any of this life."""
        self.daemon = daemon
        self.serial = serial
        self._monotonic = monotonic
        self._wall = wall
        self._kept: deque[Event] = deque(maxlen=KEPT_EVENTS)  # The last ones, oldest first.
        self._file: EventFile | None = None  # None until it is known where to write.

    def __repr__(self) -> str:
        return f"<EventLog {len(self._kept)} events, {self._file or 'no file'}>"

    def record(self, kind: Kind, text: str, subject: Subject = NOTHING) -> Event:
        """It happened now; `text` is one sentence for people. Raises ValueError if the kind needs more."""
        event = Event(self.serial + 1, self._monotonic(), self._wall(), self.daemon, kind, sentence(text), subject)
        self.serial += 1
        self._kept.append(event)
        if self._file is not None:
            self._file.append(event)
        return event

    def since(self, serial: int) -> list[Event]:
        """The events after that serial that are kept, oldest first; all if the serial is of another life."""
        if serial > self.serial:
            serial = 0
        return [event for event in self._kept if event.serial > serial]

    def keep_in(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        """Append to this file from now on, what is kept in memory first."""
        file = EventFile(path, max_bytes)
        for event in self._kept:
            file.append(event)
        self._file = file

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EventFile:
    """Appends whole lines to a file; opens it when there is something to write, and again after a fault."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._number: int | None = None  # Of the open file; None while it is not open.
        self._size = 0  # Its bytes, as far as they were written here or found.
        self._is_torn = False  # The last line has no end.
        self._is_faulty = False  # Writing failed the last time, and that was said.

    def __repr__(self) -> str:
        return f"<EventFile {self.path} {'faulty' if self._is_faulty else f'{self._size} bytes'}>"

    def append(self, event: Event) -> None:
        """Write a line. What goes wrong is logged once, until it goes well again."""
        line = event.line().encode() + b"\n"
        try:
            self._write(line)
        except OSError as error:
            self.close()
            if not self._is_faulty:
                log.warning("cannot write events to %s: %s; going on without", self.path, error.strerror)
            self._is_faulty = True
            return
        if self._is_faulty:
            log.info("writing events to %s again", self.path)
            self._is_faulty = False

    def close(self) -> None:
        """Close it, if it is open."""
        number, self._number = self._number, None
        if number is not None:
            # A disk that is full may say so only now.
            with suppress(OSError):
                os.close(number)

    def _write(self, line: bytes) -> None:
        number = self._open()
        if self._size and self._size + len(line) > self._max_bytes:
            self.close()
            self.path.replace(predecessor(self.path))
            number = self._open()
        # What was being written when the daemon was killed, or the disk was full: what follows gets a line of its own.
        whole = b"\n" + line if self._is_torn else line
        # In one call, so that a kill tears at most this line.
        written = os.write(number, whole)
        self._size += written
        self._is_torn = written < len(whole)
        if self._is_torn:
            raise OSError(0, f"only {written} of {len(whole)} bytes could be written")

    def _open(self) -> int:
        if self._number is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._number = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._size = os.fstat(self._number).st_size
            self._is_torn = self._size > 0 and os.pread(self._number, 1, self._size - 1) != b"\n"
        return self._number


def predecessor(path: Path) -> Path:
    """Where the file before this one is kept."""
    return path.with_suffix(f".1{path.suffix}")


@dataclass(frozen=True)
class Found:
    """What a file holds."""

    events: tuple[Event, ...]
    unread: int
    """Lines that are no events: torn, or of a kind that is unknown here."""


def read_events(path: Path) -> Found:
    """The events of a file, or of all event files of a folder. Raises ConfigError when it cannot be read."""
    events: list[Event] = []
    unread = 0
    try:
        paths = sorted(path.glob(file_name("*"))) if path.is_dir() else [path]
        for each in paths:
            for line in each.read_text(errors="replace").splitlines():
                try:
                    events.append(Event.parse(line))
                except ValueError:
                    unread += 1
    except OSError as error:
        raise ConfigError(f"events cannot be read from {path}: {error.strerror}") from None
    if path.is_dir() and not paths:
        raise ConfigError(
            f"there are no event files in {path}; name a file events-*.jsonl, or a folder with such files"
        )
    return Found(tuple(events), unread)
