"""How a client that begins to plan comes to books that know it all: it asks until those who know have answered.

Books that begin at 0 beside a run that has been trained would let all of it be trained again. So whoever says that it
has books, or drives a pipeline of which they lack steps, is asked again and again, until it answers or is lost. Who
declines is passed over, and what is lacking then is said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from distqat.aio import Backoff
from distqat.data.claims import Claim, claims_from_json
from distqat.data.ledger import Ledger
from distqat.data.messages import BooksAnswer, BooksRequest
from distqat.errors import DistqatError, StateError
from distqat.ids import PeerId, RunId, short
from distqat.roles.checkpoint.held_books import take_books
from distqat.roles.checkpoint.revival import LOOK_THROUGH_SECONDS
from distqat.roles.context import RoleContext
from distqat.roles.leases import Leases
from distqat.roles.outlook import lines
from distqat.rpc.transport import Deadline, Method
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

BOOKED = Method("distqat.v1.Control", "Booked")

SECONDS = 10.0
"""For the answer of a trainer, of at most some megabytes; then it is asked again."""


class Inquiry:
    """The questions of one client, before it decides anything."""

    def __init__(
        self,
        context: RoleContext,
        run: RunId,
        leases: Leases,
        ask_all: Callable[[], Awaitable[Iterable[PeerId]]],
        reason: Reason,
    ) -> None:
        """`ask_all` asks every peer what it does, once, and says which those are."""
        self._context = context
        self._run = run
        self._leases = leases
        self._ask_all = ask_all
        self._reason = reason

    def __repr__(self) -> str:
        return f"<Inquiry {self._run}: {self._reason}>"

    async def find(self, ledger: Ledger, has_progress: bool) -> None:
        """Nothing is known here: others may have the books beside their checkpoints."""
        backoff, began = Backoff(0.25, 5.0), asyncio.get_running_loop().time()
        while True:
            peers = await self._ask_all()
            away = set(await take_books(ledger, self._leases.statuses, self._context, self._run, {}))
            if has_progress and ledger.is_new:
                # Who has not answered may hold what was trained, and the books.
                away |= {peer for peer in peers if peer not in self._leases.statuses and peer not in self._leases.lost}
                if asyncio.get_running_loop().time() - began < LOOK_THROUGH_SECONDS:
                    away |= self._looking()
            if not away:
                return
            names = ", ".join(map(short, sorted(away)))
            self._reason.set(f"waiting: the run goes on, and its books are to be had of {names}")
            await asyncio.sleep(backoff.next())

    def _looking(self) -> set[PeerId]:
        """Those who do not know yet what they hold."""
        return {
            peer
            for peer, status in self._leases.statuses.items()
            for role in status.roles
            if status.run == self._run
            and role.role in ("expert", "mirror")
            and role.checkpoints is None
            and role.phase not in ("failed", "draining")
        }

    async def complete(self, ledger: Ledger) -> None:
        """Books that were copied, or could not be written, are behind: the trainers know what it brought since."""
        backoff = Backoff(0.25, 5.0)
        while True:
            await self._ask_all()
            shown = lines(self._leases.statuses, self._run)
            booked = [claim for _, line in shown for claim in line.booked]
            away = []
            for peer in sorted({peer for peer, line in shown if ledger.lacks(line.pipeline, line.booked)}):
                try:
                    booked += await self._booked_by(peer)
                except DistqatError as error:
                    log.info("%s does not say what it has booked: %s", short(peer), error)
                    # Who declines will not say it at another time.
                    if error.retriable and not isinstance(error, StateError):
                        away.append(peer)
            if not away:
                break
            names = ", ".join(map(short, away))
            self._reason.set(f"waiting: the books are behind, and {names} knows what came after")
            await asyncio.sleep(backoff.next())
        held = [claim for _, line in shown for claim in line.claims]
        known = {claim.id: claim for claim in booked}
        if entries := ledger.complete(held, sorted(known.values(), key=lambda claim: claim.id)):
            log.info("the books lacked %d claims", entries)
        for pipeline in sorted({line.pipeline for _, line in shown if ledger.lacks(line.pipeline, line.booked)}):
            log.warning("the books lack steps of pipeline %s: some samples may be trained on twice", pipeline)

    async def _booked_by(self, peer: PeerId) -> tuple[Claim, ...]:
        """All that a trainer remembers. Raises DistqatError."""
        endpoint, request = self._leases.statuses[peer].endpoint, BooksRequest(self._run).encode()
        reply = await self._context.transport.call(endpoint, BOOKED, request, Deadline.after(SECONDS))
        return claims_from_json(BooksAnswer.decode(reply).json)
