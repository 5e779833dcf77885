"""What a trainer sees of the data: the next batch, and what became of it. The seam to every way of being fed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from distqat.aio import Backoff
from distqat.data.claims import Claim, ClaimAnswer
from distqat.data.ledger import Ledger
from distqat.data.messages import (
    CLAIM,
    RESOLVE,
    WHERE,
    ClaimRequest,
    ResolveAnswer,
    ResolveRequest,
    WhereAnswer,
    WhereRequest,
    decode_answer,
)
from distqat.data.patience import Patience
from distqat.data.reading import Reading
from distqat.data.sources.splits import Arrays
from distqat.errors import DataError, NotDistqatError, RefusedError, RpcError, UnreachableError
from distqat.ids import Endpoint, RunId
from distqat.rpc.transport import Deadline, Method, Transport
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

CALL_TIMEOUT = 5.0
"""Seconds until a call to the client is given up and tried again."""


@dataclass(frozen=True)
class Batch:
    """Samples at positions [begin, end) of the run's order: "inputs" and the targets, samples along the first axis."""

    claim: int
    begin: int
    end: int
    tensors: Arrays = field(repr=False)

    @property
    def samples(self) -> int:
        """How many."""
        return self.end - self.begin


class UnreadableError(DataError):
    """The samples at positions [begin, end) cannot be read. They are refused: nobody gets them any more."""

    def __init__(self, claim: Claim, reason: str, in_a_row: int) -> None:
        super().__init__(f"samples {claim.begin} to {claim.end} cannot be read: {reason}")
        self.claim = claim.id
        self.begin = claim.begin
        self.end = claim.end
        self.in_a_row = in_a_row  # Claims that could not be read, this one included.


class DataClient(Protocol):
    """Feeds one pipeline."""

    @property
    def waiting(self) -> str:
        """Why a call waits, in one sentence; empty while none does."""
        ...

    async def next(self, samples: int, step: int = 0) -> Batch | None:
        """At most so many samples for that step, waiting while all are with others; None when the run's budget is
        committed. Raises UnreadableError, each time for other samples: the next call goes on behind them."""
        ...

    async def committed(self, batch: Batch) -> None:
        """The batch is in committed parameters."""
        ...

    async def give_back(self, batch: Batch) -> None:
        """The batch will not be trained on here."""
        ...

    async def refuse(self, batch: Batch, reason: str) -> None:
        """The batch should be trained on by nobody."""
        ...


class Claims(Protocol):
    """A way to the run's ledger. Both calls may be repeated, and wait for as long as the ledger is away."""

    @property
    def waiting(self) -> str:
        """Why a call waits, in one sentence; empty while none does."""
        ...

    async def claim(self, pipeline: str, samples: int, serial: int, step: int = 0) -> ClaimAnswer:
        """Ask for samples of a step; the same serial gets the same claim."""
        ...

    async def resolve(self, claim: int, committed: bool) -> bool:
        """Say what became of a claim; False when it had been taken from the pipeline meanwhile."""
        ...

    async def refuse(self, claim: int, reason: str) -> bool:
        """Nobody should train on a claim; False when it had been taken from the pipeline meanwhile."""
        ...


class LocalClaims:
    """The ledger is in this process."""

    waiting = ""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def claim(self, pipeline: str, samples: int, serial: int, step: int = 0) -> ClaimAnswer:
        return self._ledger.answer(pipeline, samples, serial, step)

    async def resolve(self, claim: int, committed: bool) -> bool:
        return self._ledger.resolve(claim, committed)

    async def refuse(self, claim: int, reason: str) -> bool:
        return self._ledger.refuse(claim)


class RemoteClaims:
    """The ledger is with the run's client, wherever that is now; `find` says where, or None."""

    def __init__(self, transport: Transport, find: Callable[[], Endpoint | None], run: RunId) -> None:
        self._transport = transport
        self._find = find
        self._run = run
        self._reason = Reason(log, "")  # Why a call waits; empty while the client answers.

    @property
    def waiting(self) -> str:
        return self._reason.text

    async def claim(self, pipeline: str, samples: int, serial: int, step: int = 0) -> ClaimAnswer:
        request = ClaimRequest(self._run, pipeline, samples, serial, step)
        return decode_answer(await self._ask(CLAIM, request.encode()), pipeline)

    async def resolve(self, claim: int, committed: bool) -> bool:
        request = ResolveRequest(self._run, claim, committed)
        return ResolveAnswer.decode(await self._ask(RESOLVE, request.encode())).is_accepted

    async def refuse(self, claim: int, reason: str) -> bool:
        request = ResolveRequest(self._run, claim, False, reason)
        return ResolveAnswer.decode(await self._ask(RESOLVE, request.encode())).is_accepted

    async def where(self) -> Endpoint:
        """Where the data server answers, asked once. Raises RpcError while nobody knows."""
        endpoint = self._find()
        if endpoint is None:
            raise UnreachableError(f"no client of run {self._run.name} is known")
        reply = await self._transport.call(
            endpoint, WHERE, WhereRequest(self._run).encode(), Deadline.after(CALL_TIMEOUT)
        )
        answer = WhereAnswer.decode(reply)
        if answer.endpoint is None:
            raise UnreachableError(answer.reason)
        return answer.endpoint

    async def _ask(self, method: Method, request: bytes) -> bytes:
        """Ask until there is an answer. Raises RpcError only where asking again cannot help."""
        backoff = Backoff(most=2.0)
        try:
            while True:
                reply = await self._try(method, request)
                if reply is not None:
                    return reply
                await asyncio.sleep(backoff.next())
        finally:
            self._reason.text = ""

    async def _try(self, method: Method, request: bytes) -> bytes | None:
        """One attempt; None when another one may help."""
        endpoint = self._find()
        if endpoint is None:
            self._reason.set(f"waiting: no client of run {self._run.name} is known")
            return None
        try:
            return await self._transport.call(endpoint, method, request, Deadline.after(CALL_TIMEOUT))
        except RpcError as error:
            # A client that has just gone or just come: another program has its port, or its role is not up yet.
            if not error.retriable and not isinstance(error, NotDistqatError | RefusedError):
                raise
            self._reason.set(f"waiting: the client of run {self._run.name} at {endpoint}: {error.reason}")
            return None


class LedgerClient:
    """Claims positions from a ledger and gets the samples that are there."""

    def __init__(self, pipeline: str, reading: Reading, claims: Claims) -> None:
        self.pipeline = pipeline
        self._reading = reading
        self._claims = claims
        self._serial = 0  # Highest serial that was answered with a claim, as far as is known here.
        self._reason = Reason(log, "")  # Why `next` waits; empty while it does not.
        self._patience = Patience(self._reason.set)
        self._unreadable: tuple[int, UnreadableError] | None = None  # The serial of a claim that is to be refused, why.

    def __repr__(self) -> str:
        return f"<LedgerClient of pipeline {self.pipeline}, claim {self._serial}, {self.waiting or 'not waiting'}>"

    @property
    def waiting(self) -> str:
        return self._claims.waiting or self._reason.text or self._reading.waiting

    async def next(self, samples: int, step: int = 0) -> Batch | None:
        """At most so many samples, for that step. A cancelled call loses none: the next asks under the same serial.

        Raises UnreadableError."""
        backoff = Backoff(first=0.02, most=1.0)
        try:
            await self._refuse_unreadable()
            while (answer := await self._ask(samples, step)).claim is None:
                if answer.is_finished:
                    return None
                self._reason.set(answer.reason)
                await asyncio.sleep(backoff.next())
            self._reason.text = ""
            batch = await self._read(answer.claim, answer.serial)
            if batch is None:
                await self._refuse_unreadable()
                # It was taken away meanwhile, and is with somebody else.
                return await self.next(samples, step)
        finally:
            self._reason.text = ""
        # Only now: had the call been cancelled before, the next one would get the claim again.
        self._serial = max(self._serial, answer.serial)
        return batch

    async def _read(self, claim: Claim, serial: int) -> Batch | None:
        """The samples of a claim; None: they cannot be read, and the claim is to be refused."""
        try:
            tensors = await self._patience.read(self._reading.train, claim.begin, claim.end)
        except DataError as error:
            self._unreadable = serial, UnreadableError(claim, error.reason, self._patience.failed)
            return None
        return Batch(claim.id, claim.begin, claim.end, tensors)

    async def _refuse_unreadable(self) -> None:
        """Refuse what could not be read, and raise it as UnreadableError, unless another has it now. Had the call been
        cancelled meanwhile, the next one would refuse it again, which counts once."""
        if self._unreadable is None:
            return
        serial, error = self._unreadable
        is_refused = await self._claims.refuse(error.claim, error.reason)
        self._serial = max(self._serial, serial)
        self._unreadable = None
        if is_refused:
            raise error

    async def _ask(self, samples: int, step: int) -> ClaimAnswer:
        answer = await self._claims.claim(self.pipeline, samples, self._serial + 1, step)
        if answer.claim is None:
            self._serial = max(self._serial, answer.serial)
        return answer

    async def committed(self, batch: Batch) -> None:
        """The batch is in committed parameters."""
        if not await self._claims.resolve(batch.claim, True):
            log.warning(
                "samples %d to %d of pipeline %s are committed, but had been taken from it meanwhile",
                batch.begin,
                batch.end,
                self.pipeline,
            )

    async def give_back(self, batch: Batch) -> None:
        """The batch will not be trained on here; whether it had been taken already does not matter."""
        await self._claims.resolve(batch.claim, False)

    async def refuse(self, batch: Batch, reason: str) -> None:
        """The batch should be trained on by nobody."""
        await self._claims.refuse(batch.claim, reason)
