"""The run's books beside the checkpoints of a daemon: so they do not end with the machine of the client.

Whoever writes a checkpoint first asks the planning client for its books. What is in the checkpoint was claimed before,
so these books know of all its steps, and may go back to exactly them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from distqat.data.claims import LedgerSnapshot
from distqat.data.ledger import Ledger
from distqat.data.messages import BOOKS, BooksAnswer, BooksRequest
from distqat.errors import DistqatError, StateError
from distqat.ids import PeerId, RunId, short
from distqat.roles.books import write_books
from distqat.roles.context import RoleContext
from distqat.roles.status import PeerStatus
from distqat.rpc.transport import Deadline, Method

log = logging.getLogger(__name__)

HELD_BOOKS = Method("distqat.v1.Control", "HeldBooks")

SECONDS = 2.0
"""For one answer; who does not give books within this long is passed over."""


class HeldBooks:
    """The newest books of one run that this daemon has seen."""

    def __init__(self, path: Path, ask: Callable[[], Awaitable[LedgerSnapshot | None]]) -> None:
        self.newest: LedgerSnapshot | None = None  # None while there are none.
        self._path = path
        self._ask = ask  # The planning client; None: it does not answer, or there is none.

    def __repr__(self) -> str:
        return f"<HeldBooks {self._path.name}, {self.num_claims} claims>"

    @property
    def num_claims(self) -> int:
        """Of two copies that with more is the newer one; 0: there is none."""
        return self.newest.num_claims if self.newest is not None else 0

    async def find(self) -> None:
        """Those on the disk; what is no ledger is refused by name."""
        try:
            self.newest = LedgerSnapshot.from_json(await asyncio.to_thread(self._path.read_text))
        except FileNotFoundError:
            return
        except (StateError, OSError, ValueError) as error:
            log.warning("the books %s cannot be used: %s", self._path, error)

    async def renew(self) -> None:
        """Those of the planning client; the last ones stay if they cannot be had, or written."""
        found = await self._ask()
        if found is None:
            return
        fault = await asyncio.to_thread(write_books, self._path, found)
        if fault:
            log.warning("no copy of the books: %s", fault)
            return
        self.newest = found


def books_of_client(context: RoleContext, run: RunId) -> Callable[[], Awaitable[LedgerSnapshot | None]]:
    """Asks whoever plans the run."""

    async def ask() -> LedgerSnapshot | None:
        clients = context.directory.snapshot().clients.values()
        planning = next((entry.record.endpoint for entry in clients if entry.record.planning), None)
        if planning is None:
            return None
        try:
            reply = await context.transport.call(planning, BOOKS, BooksRequest(run).encode(), Deadline.after(SECONDS))
            return LedgerSnapshot.from_json(BooksAnswer.decode(reply).json)
        except DistqatError as error:
            log.debug("no copy of the books from %s: %s", planning, error)
            return None

    return ask


async def take_books(
    ledger: Ledger, statuses: Mapping[PeerId, PeerStatus], context: RoleContext, run: RunId, steps: Mapping[str, int]
) -> None:
    """If the ledger does not know of these steps, go on with the newest books beside somebody's checkpoints that do;
    a ledger that knows nothing at all, with the newest."""
    if ledger.covers(steps) and not ledger.is_new:
        return
    offers: list[tuple[int, PeerId]] = []
    for peer, status in statuses.items():
        held = [role.checkpoints.books for role in status.roles if role.checkpoints is not None]
        if status.run == run and any(held):
            offers.append((max(held), peer))
    found: list[tuple[PeerId, LedgerSnapshot]] = []
    for _, peer in sorted(offers, reverse=True):
        try:
            request, deadline = BooksRequest(run).encode(), Deadline.after(SECONDS)
            reply = await context.transport.call(statuses[peer].endpoint, HELD_BOOKS, request, deadline)
            books = LedgerSnapshot.from_json(BooksAnswer.decode(reply).json)
            if Ledger.restore(books).covers(steps):
                _take(ledger, peer, books)
                return
            found.append((peer, books))
        except DistqatError as error:
            log.warning("no books from %s: %s", short(peer), error)
    if found and ledger.is_new:
        log.warning("no books know of all steps that are gone on from: some samples may be trained on twice")
        _take(ledger, *found[0])


def _take(ledger: Ledger, peer: PeerId, books: LedgerSnapshot) -> None:
    """Raises StateError for books of another budget."""
    ledger.take(books)
    log.info("the books are those beside the checkpoints of %s: %d samples committed", short(peer), ledger.committed)
