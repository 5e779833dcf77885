"""The ledger on disk, so that a client that comes back goes on where it was."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from distqat.data.ledger import Claim, Ledger, LedgerSnapshot
from distqat.errors import StateError

log = logging.getLogger(__name__)

WRITE_SECONDS = 0.5
"""Between two writes while the books change."""


def open_books(path: Path, budget: int, has_progress: bool) -> Ledger:
    """The ledger in that file if the swarm still holds what it speaks of, else a new one over `budget` positions.

    A pipeline's open claims stay with it: its trainer may live on.
    """
    if not path.exists():
        return Ledger(budget)
    if not has_progress:
        log.info("no live expert holds what the books of %s speak of: beginning anew", path.name)
        return Ledger(budget)
    try:
        ledger = Ledger.restore(_read(path))
    except (StateError, ValueError, KeyError, TypeError) as error:
        log.warning("the books %s cannot be used: %s: beginning anew", path, error)
        return Ledger(budget)
    if ledger.budget != budget:
        log.warning("the books %s are over %d samples, not %d: beginning anew", path, ledger.budget, budget)
        return Ledger(budget)
    log.info("going on at %d of %d samples", ledger.committed, ledger.budget)
    return ledger


async def keep_books(path: Path, ledger: Ledger) -> None:
    """Write the ledger whenever it has changed."""
    written: LedgerSnapshot | None = None
    while True:
        snapshot = ledger.snapshot()
        if snapshot != written:
            await asyncio.to_thread(_write, path, snapshot)
            written = snapshot
        await asyncio.sleep(WRITE_SECONDS)


def _write(path: Path, snapshot: LedgerSnapshot) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        json.dump(dataclasses.asdict(snapshot), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _read(path: Path) -> LedgerSnapshot:
    tree: dict[str, Any] = json.loads(path.read_text())
    claims = {name: tuple(Claim(**claim) for claim in tree.pop(name)) for name in ("open", "released")}
    lists = {name: tuple(tuple(row) for row in value) for name, value in tree.items() if isinstance(value, list)}
    return LedgerSnapshot(**{**tree, **lists, **claims})
