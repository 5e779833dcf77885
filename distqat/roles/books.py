"""The ledger on disk, so that a client that comes back, or takes over, goes on where the books were."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from distqat.data.claims import LedgerSnapshot
from distqat.data.ledger import Ledger
from distqat.data.messages import BOOKS, BooksAnswer, BooksRequest
from distqat.errors import DistqatError, StateError
from distqat.ids import Endpoint, RunId
from distqat.rpc.transport import Deadline, Transport

log = logging.getLogger(__name__)

COPY_SECONDS = 2.0
"""A planning client that does not hand its books out within this long is asked again later."""


class Books:
    """Writes a ledger before anybody is told what stands in it."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self.ledger = ledger
        self._turn = asyncio.Lock()  # Held while the file is written.
        self._asked = 0  # Calls of `save` so far.
        self._covered = 0  # Those whose entries the file holds, or would if it could be written.
        self.fault = ""  # Why the file could not be written the last time; empty if it was.

    async def save(self) -> None:
        """Return when the file holds everything that stood in the ledger at the call; calls that meet share a write.

        A disk that is full ends no run: `fault` says so, and the next call tries again.
        """
        self._asked += 1
        mine = self._asked
        async with self._turn:
            if self._covered >= mine:
                return
            covered = self._asked
            # A snapshot is frozen: the loop goes on while it becomes text.
            fault = await asyncio.to_thread(write_books, self.path, self.ledger.snapshot())
            if fault and not self.fault:
                log.warning("%s; going on without", fault)
            self._covered, self.fault = covered, fault


def open_books(path: Path, budget: int, has_progress: bool) -> Books:
    """The ledger in that file if the swarm still holds what it speaks of, else a new one over `budget` positions.

    A pipeline's open claims stay with it: its trainer may live on.
    """
    # Trainers of an earlier life of the run may still speak of its claims: milliseconds keep the numbers apart.
    return Books(path, _restored(path, budget, has_progress) or Ledger(budget, last_claim=time.time_ns() // 1_000_000))


async def copy_books(path: Path, transport: Transport, client: Endpoint, run: RunId) -> None:
    """Keep a copy of the planning client's books, for the day on which it is gone; without an answer the last stays."""
    try:
        reply = await transport.call(client, BOOKS, BooksRequest(run).encode(), Deadline.after(COPY_SECONDS))
        books = LedgerSnapshot.from_json(BooksAnswer.decode(reply).json)
    except DistqatError as error:
        log.debug("no copy of the books from %s: %s", client, error)
        return
    fault = await asyncio.to_thread(write_books, path, books)
    if fault:
        log.warning("no copy of the books: %s", fault)


def _restored(path: Path, budget: int, has_progress: bool) -> Ledger | None:
    if not path.exists():
        return None
    if not has_progress:
        log.info("no live expert holds what the books of %s speak of: beginning anew", path.name)
        return None
    try:
        ledger = Ledger.restore(LedgerSnapshot.from_json(path.read_text()))
    except (StateError, OSError, ValueError) as error:
        log.warning("the books %s cannot be used: %s: beginning anew", path, error)
        return None
    if ledger.budget != budget:
        log.warning("the books %s are over %d samples, not %d: beginning anew", path, ledger.budget, budget)
        return None
    log.info("going on at %d of %d samples", ledger.committed, ledger.budget)
    return ledger


def write_books(path: Path, books: LedgerSnapshot) -> str:
    """Survives the death of this process at any moment; not flushed to the disk, which would cost every step. Why it
    could not be written, else nothing; then the file is as it was."""
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(books.to_json())
        temporary.rename(path)
    except OSError as error:
        return f"the books cannot be written to {path}: {(error.strerror or str(error)).lower()}"
    return ""
