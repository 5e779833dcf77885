"""The ledger on disk, so that a client that comes back goes on exactly where it was."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from distqat.data.ledger import Claim, Ledger, LedgerSnapshot
from distqat.errors import StateError

log = logging.getLogger(__name__)


class Books:
    """Writes a ledger before anybody is told what stands in it."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self.ledger = ledger
        self._turn = asyncio.Lock()  # Held while the file is written.
        self._asked = 0  # Calls of `save` so far.
        self._covered = 0  # Those whose entries the file holds.

    async def save(self) -> None:
        """Return when the file holds everything that stood in the ledger at the call; calls that meet share a write."""
        self._asked += 1
        mine = self._asked
        async with self._turn:
            if self._covered >= mine:
                return
            covered = self._asked
            await asyncio.to_thread(_write, self.path, self.ledger.snapshot())
            self._covered = covered


def open_books(path: Path, budget: int, has_progress: bool) -> Books:
    """The ledger in that file if the swarm still holds what it speaks of, else a new one over `budget` positions.

    A pipeline's open claims stay with it: its trainer may live on.
    """
    return Books(path, _ledger(path, budget, has_progress))


def _ledger(path: Path, budget: int, has_progress: bool) -> Ledger:
    if not path.exists():
        return Ledger(budget)
    if not has_progress:
        log.info("no live expert holds what the books of %s speak of: beginning anew", path.name)
        return Ledger(budget)
    try:
        ledger = Ledger.restore(_read(path))
    except (StateError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the books %s cannot be used: %s: beginning anew", path, error)
        return Ledger(budget)
    if ledger.budget != budget:
        log.warning("the books %s are over %d samples, not %d: beginning anew", path, ledger.budget, budget)
        return Ledger(budget)
    log.info("going on at %d of %d samples", ledger.committed, ledger.budget)
    return ledger


def _write(path: Path, snapshot: LedgerSnapshot) -> None:
    """Survives the death of this process at any moment; not flushed to the disk, which would cost every step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(dataclasses.asdict(snapshot)))
    temporary.rename(path)


def _read(path: Path) -> LedgerSnapshot:
    tree: Any = json.loads(path.read_text())
    if not isinstance(tree, dict):
        raise StateError("they hold no ledger")
    claims = {name: tuple(Claim(**claim) for claim in tree.pop(name)) for name in ("open", "released")}
    lists = {name: tuple(tuple(row) for row in value) for name, value in tree.items() if isinstance(value, list)}
    return LedgerSnapshot(**{**tree, **lists, **claims})
