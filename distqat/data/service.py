"""The answering side of the data flow: a ledger for trainers elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from distqat.data.ledger import Ledger
from distqat.data.messages import (
    BOOKS,
    CLAIM,
    RESOLVE,
    SERVICE,
    WHERE,
    BooksAnswer,
    BooksRequest,
    ClaimRequest,
    ResolveAnswer,
    ResolveRequest,
    WhereAnswer,
    WhereRequest,
    encode_answer,
)
from distqat.errors import RefusedError, WrongRunError
from distqat.ids import Endpoint, RunId
from distqat.rpc.transport import Caller, Service

log = logging.getLogger(__name__)


def _nowhere() -> Endpoint:
    raise RefusedError("the run has no data server: its trainers read the data themselves")


def data_service(
    run: RunId,
    ledger: Ledger,
    save: Callable[[], Awaitable[None]] | None = None,
    where: Callable[[], Endpoint] = _nowhere,
) -> Service:
    """Answers `Claim` and `Resolve` from this ledger; trainers of another run are refused. `where` says where the data
    server answers, and raises RefusedError while it does not.

    `save` is awaited before an answer leaves: what a trainer was told is then still known after a crash of this peer.
    An answer that the crash swallowed is asked for again.
    """

    def check(asked: RunId) -> None:
        if asked != run:
            raise WrongRunError(f"asked for samples of run {asked}, but the ledger here is of run {run}")

    async def claim(data: bytes, _: Caller) -> bytes:
        request = ClaimRequest.decode(data)
        check(request.run)
        answer = ledger.answer(request.pipeline, request.samples, request.serial, request.step)
        if save is not None and answer.claim is not None:
            await save()
        return encode_answer(answer)

    async def resolve(data: bytes, _: Caller) -> bytes:
        request = ResolveRequest.decode(data)
        check(request.run)
        if request.refused:
            accepted = ledger.refuse(request.claim)
            log.warning("the samples of claim %d are skipped: %s", request.claim, request.refused)
        else:
            accepted = ledger.resolve(request.claim, request.is_committed)
        if save is not None:
            await save()
        return ResolveAnswer(accepted, ledger.committed).encode()

    async def books(data: bytes, _: Caller) -> bytes:
        check(BooksRequest.decode(data).run)
        return BooksAnswer(ledger.snapshot().to_json()).encode()

    async def tell_where(data: bytes, _: Caller) -> bytes:
        check(WhereRequest.decode(data).run)
        try:
            return WhereAnswer(where()).encode()
        except RefusedError as error:
            return WhereAnswer(None, error.reason).encode()

    calls = {CLAIM.name: claim, RESOLVE.name: resolve, BOOKS.name: books, WHERE.name: tell_where}
    return Service(SERVICE, calls=calls)
