"""Committed state from one expert to another over loopback: described, hashed, fetched, verified, put together.

`python -m bench transfer`. A newcomer's way, and that of a spare that begins to follow: the donor has hashed nothing of
it before, and the asker has the whole state, checked by chunk and as a whole, when the time ends. Beside it the same
bytes over bare gRPC, which nobody hashes or keeps.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from bench import bare
from bench.case import Case, Goal, Line, interleave
from bench.workers import Worker, open_worker
from distqat.averaging import catchup
from distqat.averaging.averager import Averager
from distqat.averaging.context import Context, Sibling
from distqat.averaging.service import services
from distqat.averaging.spans import Shape
from distqat.ids import Endpoint, PeerId, RunId, StageIndex
from distqat.model.device import Device
from distqat.rpc.grpc import GrpcTransport, open_transport
from distqat.rpc.transport import Server
from distqat.sections import SyncSection

ELEMENTS = 16 << 20
QUICK_ELEMENTS = 4 << 20
"""Parameters of the stage; its state is anchor and momentum, 8 bytes for each."""
SHARE = 1 << 20
"""Elements of a fragment, where the state has several."""

BARE_KIB = (512, 1024, 2048)
AT_LEAST = Goal("value", 0.5)

RUN = RunId("bench", "0" * 32)
STAGE = StageIndex(0)
SYNC = SyncSection(warmup_steps=0)


@dataclass(frozen=True)
class Form:
    """A size of state, and how many fragments it has."""

    elements: int
    fragments: int

    def __str__(self) -> str:
        parts = f", {self.fragments} fragments" if self.fragments > 1 else ""
        return f"state of {self.nbytes >> 20} MiB{parts}"

    @property
    def nbytes(self) -> int:
        """Anchor and momentum in fp32."""
        return 2 * torch.float32.itemsize * self.elements

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the fragments, all alike."""
        share = self.elements // self.fragments
        return (Shape(share, share),) * self.fragments


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Each size in turn with bare gRPC."""
    elements, runs = (QUICK_ELEMENTS, 3) if quick else (ELEMENTS, 15)
    async with AsyncExitStack() as stack:
        donor = await stack.enter_async_context(open_worker("donor", open_expert, "donor"))
        asker = await stack.enter_async_context(open_worker("asker", open_expert, "asker"))
        taker = await stack.enter_async_context(open_worker("bare receiver", bare.open_receiver))
        at = await taker.ask("endpoints")
        sender = await stack.enter_async_context(open_worker("bare sender", bare.open_sender, *at, 1 << 24))
        for form in (Form(elements, 1), Form(elements, elements // SHARE)):
            yield await _line(form, runs, donor, asker, sender)


async def _line(form: Form, runs: int, donor: Worker, asker: Worker, sender: Worker) -> Line:
    rounds = form.nbytes >> 24
    ours, *peers = await interleave(
        runs,
        partial(transferred, form, donor, asker),
        *(partial(sender.ask, "send_grpc", kib << 10, rounds) for kib in BARE_KIB),
    )
    kib, best = max(zip(BARE_KIB, peers, strict=True), key=lambda found: median(found[1]))
    title = f"grpc.aio, as many bytes cut beforehand, {kib} KiB each (its fastest)"
    return Case("transfer", str(form), "GB/s", "higher", title, AT_LEAST).line(ours, best)


async def transferred(form: Form, donor: Worker, asker: Worker) -> float:
    """GB/s of one state that is new to both of them."""
    sibling = await donor.ask("found", form)
    seconds, digest = await asker.ask("take", form, sibling)
    assert digest == sibling.digest
    return form.nbytes / float(seconds) / 1e9


class Expert:
    """One side, in a process of its own: gives what it has founded, or takes what another has."""

    def __init__(self, name: str, transport: GrpcTransport, server: Server, device: Device) -> None:
        self._me = PeerId(name)
        self._transport = transport
        self._server = server
        self._device = device
        self._stack = AsyncExitStack()  # Holds the averager that gives.
        self._founded = 0  # States so far; each has numbers of its own.

    async def found(self, form: Form) -> Sibling:
        """Serve a state that nobody has seen, and be its donor."""
        await self._stack.aclose()
        averager = await self._stack.enter_async_context(Averager.open(self._context(form)))
        for service in services(averager):
            self._server.add(service)
        self._founded += 1
        torch.manual_seed(self._founded)
        state = await averager.found(torch.randn(form.elements))
        return Sibling(self._me, self._server.endpoint, state.round, state.digest, True)

    async def take(self, form: Form, donor: Sibling) -> tuple[float, str]:
        """Seconds until the donor's state is here, and its digest."""
        began = time.perf_counter()
        state = await catchup.fetch(self._context(form), [donor])
        return time.perf_counter() - began, state.digest

    async def close(self) -> None:
        """Give nothing any more."""
        await self._stack.aclose()

    def _context(self, form: Form) -> Context:
        return Context(
            me=self._me,
            endpoint=self._server.endpoint,
            run=RUN,
            stage=STAGE,
            shapes=form.shapes,
            transport=self._transport,
            device=self._device,
            sync=SYNC,
            siblings=list,
            on_lost=lambda peer, reason: None,
        )


@asynccontextmanager
async def open_expert(name: str) -> AsyncIterator[Expert]:
    """On one thread, listening on loopback."""
    torch.set_num_threads(1)
    async with (
        Device.open("cpu", threads=1) as device,
        open_transport() as transport,
        transport.serve(Endpoint("127.0.0.1", 0)) as server,
    ):
        expert = Expert(name, transport, server, device)
        try:
            yield expert
        finally:
            await expert.close()
