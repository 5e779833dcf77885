"""The run's books beside the checkpoints of a daemon: so they do not end with the machine of the client.

Whoever writes a checkpoint first asks the planning client for its books. What is in the checkpoint was claimed before,
so these books know of all its steps, and may go back to exactly them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
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

SECONDS = 5.0
"""For one answer; who does not give books within this long is asked again where they are needed."""


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
            found = LedgerSnapshot.from_json(await asyncio.to_thread(self._path.read_text))
            Ledger.restore(found)
            self.newest = found
        except FileNotFoundError:
            return
        except (StateError, OSError, ValueError) as error:
            log.warning("the books %s cannot be used: %s", self._path, error)

    async def renew(self, cut: Mapping[str, int], others: Sequence[Mapping[str, int]] = ()) -> None:
        """Those of the planning client, for a checkpoint of that cut beside others; the last ones stay if they cannot
        be had, or written, or know of a checkpoint that the client's do not know of."""
        found = await self._ask()
        if found is None:
            return
        fault = await asyncio.to_thread(self._write, found, cut, others)
        if fault:
            log.warning("no copy of the books: %s", fault)
            return
        self.newest = found

    def _write(self, found: LedgerSnapshot, cut: Mapping[str, int], others: Sequence[Mapping[str, int]]) -> str:
        """Why these were not, else nothing."""
        try:
            later = Ledger.restore(found)
        except StateError as error:
            return f"those of the client cannot be used: {error}"
        if self.newest is not None and not later.covers(cut):
            last = Ledger.restore(self.newest)
            if any(last.covers(other) and not later.covers(other) for other in (cut, *others)):
                return "those of the client do not know of steps that the last ones know: these stay"
        return write_books(self._path, found)


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
) -> tuple[PeerId, ...]:
    """If the ledger does not know of these steps, go on with the newest books beside somebody's checkpoints that do;
    a ledger that knows nothing at all, with the newest.

    Comes to those who have books that may be better ones and did not answer: nothing is taken, and they are to be asked
    again. Whoever declines, or gives what is no ledger, is passed over.
    """
    if ledger.covers(steps) and not ledger.is_new:
        return ()
    offers: list[tuple[int, PeerId]] = []
    for peer, status in statuses.items():
        held = [role.checkpoints.books for role in status.roles if role.checkpoints is not None]
        if status.run == run and any(held):
            offers.append((max(held), peer))
    found: list[tuple[PeerId, LedgerSnapshot]] = []
    away: list[PeerId] = []
    for _, peer in sorted(offers, reverse=True):
        try:
            request, deadline = BooksRequest(run).encode(), Deadline.after(SECONDS)
            reply = await context.transport.call(statuses[peer].endpoint, HELD_BOOKS, request, deadline)
            books = LedgerSnapshot.from_json(BooksAnswer.decode(reply).json)
            does_cover = _fitting(ledger, books).covers(steps)
        except DistqatError as error:
            log.warning("no books from %s: %s", short(peer), error)
            if error.retriable and not isinstance(error, StateError):
                away.append(peer)
            continue
        # Any cover no steps at all: then those of whoever is away, which are newer, are better.
        if does_cover and (steps or not away):
            _take(ledger, peer, books)
            return ()
        found.append((peer, books))
    if not away and found and ledger.is_new:
        log.warning("no books know of all steps that are gone on from: some samples may be trained on twice")
        _take(ledger, *found[0])
    return tuple(away)


def _fitting(ledger: Ledger, books: LedgerSnapshot) -> Ledger:
    """A ledger of these books. Raises StateError if they contradict themselves, or are over another budget."""
    if books.budget != ledger.budget:
        raise StateError(f"they are over {books.budget} samples, not {ledger.budget}")
    return Ledger.restore(books)


def _take(ledger: Ledger, peer: PeerId, books: LedgerSnapshot) -> None:
    ledger.take(books)
    log.info("the books are those beside the checkpoints of %s: %d samples committed", short(peer), ledger.committed)
