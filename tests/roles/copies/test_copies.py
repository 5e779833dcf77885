"""Copies of local state, from a seat to a spare: whole or refused, and the seat itself goes only to who holds all."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch

from distqat.averaging.context import Context, Sibling
from distqat.errors import DeadlineError, DistqatError, MessageError, RefusedError, StaleError, UnreachableError
from distqat.ids import Endpoint, PipelineId, StepRef
from distqat.model.local import LocalState
from distqat.roles.copies import giving, messages, taking
from distqat.roles.copies.copy import Carried, Copy, Layout
from distqat.roles.copies.giving import Giver
from distqat.roles.copies.messages import TAKE, CopyHeader
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service, Stream
from distqat.rpc.wrapped import WrappedStream
from tests.averaging.state.stock import SHAPES, Stock, make_state
from tests.support import run_virtual

CHUNK = 4096

Tamper = Callable[[bytes], Awaitable[bytes]]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving, "CHUNK_BYTES", CHUNK)


def local_state(seed: int = 0, size: int = 5000) -> LocalState:
    draw = torch.Generator().manual_seed(seed)
    return LocalState(
        7,
        {
            "values/weight": torch.randn(size, generator=draw),
            "values/count": torch.tensor([seed, 3]),
            "optimizer/steps": torch.tensor(7.0),
            "optimizer/first/weight": torch.randn(size, generator=draw),
        },
    )


class Held:
    """A seat that gives what a test says."""

    def __init__(self, state: LocalState) -> None:
        self.given = Copy(state, "digest", (8, 16, 24), 3, (StepRef(PipelineId("p1"), 7),))
        self.unrouted = asyncio.Event()
        self.outcome = ""  # What became of the handing over.
        self.error: DistqatError | None = None

    async def copy(self) -> Copy:
        if self.error is not None:
            raise self.error
        return self.given

    @asynccontextmanager
    async def handing_over(self) -> AsyncIterator[Callable[[], Awaitable[Copy]]]:
        async def last() -> Copy:
            await self.unrouted.wait()
            return self.given

        if self.error is not None:
            raise self.error
        self.outcome = "kept"
        yield last
        self.outcome = "given"


class _Watched(WrappedStream):
    """The giver's end of a stream."""

    def __init__(self, inner: Stream, tamper: Tamper) -> None:
        super().__init__(inner)
        self._tamper = tamper

    async def send(self, data: bytes, more: bool = False) -> None:
        await super().send(await self._tamper(data), more)


class World:
    """A giver at `alice`, and who asks."""

    def __init__(self, stock: Stock, circle: Context, donor: Sibling, held: Held) -> None:
        self.network = stock.network
        self.circle = circle
        self.donor = donor
        self.held = held
        self.layout = Layout(held.given.state.tensors)

    async def take(self) -> Copy:
        return await taking.take(self.circle, self.layout, self.donor)


async def as_it_is(data: bytes) -> bytes:
    return data


@asynccontextmanager
async def world(tamper: Tamper = as_it_is, state: LocalState | None = None) -> AsyncIterator[World]:
    """A giver that serves; what it sends passes through `tamper`."""
    async with Stock.open(Network(delay=0.01)) as stock:
        transport = stock.network.transport("alice")
        async with transport.serve(Endpoint("alice", 0)) as server:
            circle = stock.context("alice", server.endpoint, transport)
            held = Held(state or local_state())
            giver = Giver(circle, held)

            async def take(stream: Stream, caller: Caller) -> None:
                await giver.take(_Watched(stream, tamper), caller)

            server.add(Service(giver.service().name, streams={TAKE.name: take}))
            donor = Sibling(circle.me, server.endpoint, 3, make_state().digest, True)
            yield World(stock, stock.asker(), donor, held)


def assert_same(found: Copy, given: Copy) -> None:
    assert (found.state.version, found.digest, found.samples, found.steps) == (7, "digest", (8, 16, 24), 3)
    assert found.origins == given.origins
    assert found.state.tensors.keys() == given.state.tensors.keys()
    for name, tensor in given.state.tensors.items():
        assert torch.equal(found.state.tensors[name], tensor)
        assert found.state.tensors[name].dtype == tensor.dtype


def test_a_copy_is_the_same_bit_for_bit() -> None:
    async def scenario() -> None:
        async with world() as here:
            assert_same(await here.take(), here.held.given)

    run_virtual(scenario())


def test_what_rounds_carry_comes_along_bit_for_bit() -> None:
    async def scenario() -> None:
        async with world() as here:
            residuals = {0: torch.randn(SHAPES[0].num_elements), 2: torch.randn(SHAPES[2].num_elements)}
            carried = Carried(residuals, {1: torch.randn(SHAPES[1].num_parameters)}, 0.25)
            here.held.given = replace(here.held.given, is_ordered=True, carried=carried)
            found = await here.take()
            assert_same(found, here.held.given)
            assert (found.is_ordered, found.carried.share) == (True, 0.25)
            assert found.carried.tensors.keys() == carried.tensors.keys()
            for name, tensor in carried.tensors.items():
                assert torch.equal(found.carried.tensors[name], tensor)

    run_virtual(scenario())


def test_a_copy_of_another_stage_is_refused_before_any_of_it_is_kept() -> None:
    async def scenario() -> None:
        async with world() as here:
            here.layout = Layout(local_state(size=4999).tensors)
            with pytest.raises(MessageError, match="another stage"):
                await here.take()

    run_virtual(scenario())


CARRIED = {"fragment": (len(SHAPES),), "twice": (0, 0), "missing": (0,)}
"""Residuals that a copy claims, and does not have."""


SHARES = {"no number": math.nan, "negative": -0.1, "more than all": 1.1}


@pytest.mark.parametrize(
    "fault", ["payload", "total", "hash", "samples", "silent", "fragment", "twice", "missing", *SHARES]
)
def test_garbage_is_refused(fault: str) -> None:
    async def spoil(data: bytes) -> bytes:
        header, payload = messages.unframe(data)
        first = header.copy is not None
        if fault == "payload" and not first:
            return messages.frame(header, memoryview(bytes(len(payload))))
        if fault == "total":
            header = replace(header, chunk=replace(header.chunk, total=1 << 40))
        if fault == "hash" and not first:
            header = replace(header, hash=b"")
        if fault == "samples" and header.copy is not None:
            header = replace(header, copy=replace(header.copy, samples=(1,)))
        if fault in CARRIED and header.copy is not None:
            header = replace(header, copy=replace(header.copy, residuals=CARRIED[fault]))
        if fault in SHARES and header.copy is not None:
            header = replace(header, copy=replace(header.copy, share=SHARES[fault]))
        if fault == "silent":
            header = CopyHeader(None, header.chunk, header.hash)
        return messages.frame(header, payload)

    async def scenario() -> None:
        async with world(spoil) as here:
            with pytest.raises(MessageError):
                await here.take()

    run_virtual(scenario())


def test_a_seat_that_has_none_to_give_says_so() -> None:
    async def scenario() -> None:
        async with world() as here:
            here.held.error = StaleError("a round is being merged")
            with pytest.raises(StaleError, match="merged"):
                await here.take()

    run_virtual(scenario())


def test_who_gives_dies_or_hangs_in_the_middle() -> None:
    async def scenario() -> None:
        sent: list[bytes] = []

        async def die(data: bytes) -> bytes:
            sent.append(data)
            if len(sent) == 3:
                here.network.crash("alice")
            return data

        async with world(die) as here:
            with pytest.raises(UnreachableError):
                await here.take()

        async def hang(data: bytes) -> bytes:
            sent.append(data)
            await asyncio.sleep(1000.0 if len(sent) == 6 else 0.0)
            return data

        async with world(hang) as here:
            began = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineError, match="no copy from alice"):
                await here.take()
            assert asyncio.get_running_loop().time() - began < here.circle.waits.progress + 1.0

    run_virtual(scenario())


def test_a_seat_is_given_away_once_the_heir_holds_its_last_state() -> None:
    async def scenario() -> None:
        async with world() as here:
            accepted = asyncio.Event()
            inheriting = taking.inherit(here.circle, here.layout, here.donor, accepted, 20.0)
            entering = asyncio.ensure_future(inheriting.__aenter__())
            await accepted.wait()
            await asyncio.sleep(5.0)
            # Its route is still there.
            assert not entering.done()
            here.held.unrouted.set()
            assert_same(await entering, here.held.given)
            assert here.held.outcome == "kept"
            await inheriting.__aexit__(None, None, None)
            assert here.held.outcome == "given"

    run_virtual(scenario())


def test_a_seat_whose_heir_dies_is_kept() -> None:
    async def scenario() -> None:
        async with world() as here:
            here.held.unrouted.set()
            with pytest.raises(ZeroDivisionError):
                async with taking.inherit(here.circle, here.layout, here.donor, asyncio.Event(), 20.0):
                    raise ZeroDivisionError
            await asyncio.sleep(1.0)
            assert here.held.outcome == "kept"

    run_virtual(scenario())


def test_a_seat_that_is_not_left_is_not_handed_over() -> None:
    async def scenario() -> None:
        async with world() as here:
            here.held.error = RefusedError("alice stays")
            accepted = asyncio.Event()
            with pytest.raises(RefusedError, match="alice stays"):
                async with taking.inherit(here.circle, here.layout, here.donor, accepted, 20.0):
                    raise AssertionError
            assert not accepted.is_set()

    run_virtual(scenario())
