from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import pytest

from distqat.averaging import messages
from distqat.averaging.spans import Shape
from distqat.averaging.state import donor as donors
from distqat.averaging.state import snapshot
from distqat.averaging.state.messages import DESCRIBE, FETCH, REPLAY, Describe, Fetch, Replay
from distqat.averaging.state.snapshot import ChunkRef, Manifest
from distqat.errors import DeadlineError, DistqatError, MessageError, OverloadedError, StaleError
from distqat.rpc.transport import Deadline, Stream
from distqat.wire.payload import Payload
from tests.averaging.state.stock import RUN, STAGE, Giver, Stock, make_state, rounds, touched
from tests.support import run_virtual

T = TypeVar("T")

FIRST = ChunkRef(0, 0)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 256)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the parts whose hashes were worked out, one for each piece of work."""
    found: list[int] = []
    inner = snapshot.hashes

    def watched(data: Payload, chunk_bytes: int, first: int, count: int) -> bytes:
        found.append(first)
        return inner(data, chunk_bytes, first, count)

    monkeypatch.setattr(snapshot, "hashes", watched)
    return found


async def describe(stock: Stock, giver: Giver, least: int = 0) -> Manifest:
    request = messages.encode(Describe(RUN, STAGE, least))
    transport = stock.network.transport("newcomer")
    answer = await transport.call(giver.sibling.endpoint, DESCRIBE, request, Deadline.after(5.0))
    return messages.decode(Manifest, answer)


@asynccontextmanager
async def opened(stock: Stock, giver: Giver) -> AsyncIterator[Stream]:
    async with stock.network.transport("newcomer").stream(giver.sibling.endpoint, FETCH) as stream:
        yield stream


async def ask(stream: Stream, digest: str, chunk: ChunkRef = FIRST) -> bytes | None:
    await stream.send(messages.encode(Fetch(RUN, STAGE, digest, chunk)))
    return await stream.receive()


def test_hashes_are_worked_out_once_for_each_part(hashed: list[int]) -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", make_state())
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(describe(stock, alice))
            once = len(hashed)
            assert once == 3
            alice.commit(touched(make_state(), 1))
            manifest = await describe(stock, alice)
            assert manifest.digest == touched(make_state(), 1).digest
            # The other fragments are known already.
            assert len(hashed) == once + 1

    run_virtual(scenario())


def test_hashing_is_cut_into_small_pieces_of_work() -> None:
    """On the device thread training goes before it, so no microbatch waits for more than one piece."""
    pieces: list[str] = []

    class Watched:
        async def run(self, fn: Callable[[], T], /) -> T:
            pieces.append("work")
            return fn()

    async def scenario() -> None:
        shapes = (Shape(20_000, 20_000),)
        async with Stock.open(shapes=shapes) as stock:
            alice = await stock.donor("alice", make_state(shapes=shapes), device=Watched())
            manifest = await describe(stock, alice)
            assert len(pieces) == -(-manifest.num_chunks // donors.AT_ONCE) > 30

    run_virtual(scenario())


def test_a_few_states_are_held_and_not_for_ever() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            state = make_state()
            alice = await stock.donor("alice", state)
            shown = [state.digest]
            await describe(stock, alice)
            for _ in range(donors.MOST_SHOWN):
                state = touched(state, 0)
                alice.commit(state)
                await describe(stock, alice)
                shown.append(state.digest)
            async with opened(stock, alice) as stream:
                assert await ask(stream, shown[1]) is not None
                assert await ask(stream, shown[2]) is not None
                with pytest.raises(StaleError, match=f"alice does not hold the state {shown[0][:8]} any more"):
                    await ask(stream, shown[0])
            # Who was asked for last stays; the other makes room.
            async with opened(stock, alice) as stream:
                await ask(stream, shown[1])
                alice.commit(touched(state, 0))
                await describe(stock, alice)
                assert await ask(stream, shown[1]) is not None
                with pytest.raises(StaleError):
                    await ask(stream, shown[2])
            assert repr(alice.donor).endswith("2 states shown, 0 streams>")
            await asyncio.sleep(alice.donor.context.waits.join + 1.0)
            assert repr(alice.donor).endswith("0 states shown, 0 streams>")

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("chunk", "digest", "error"),
    [(ChunkRef(9, 0), "", MessageError), (ChunkRef(0, 999), "", MessageError), (ChunkRef(0, 0), "x", StaleError)],
)
def test_what_is_not_there_is_refused(chunk: ChunkRef, digest: str, error: type[DistqatError]) -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", make_state())
            manifest = await describe(stock, alice)
            async with opened(stock, alice) as stream:
                with pytest.raises(error):
                    await ask(stream, digest or manifest.digest, chunk)

    run_virtual(scenario())


def test_a_state_with_too_few_rounds_is_not_even_hashed(hashed: list[int]) -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", make_state(number=3))
            with pytest.raises(StaleError, match="alice has committed 3 rounds, fewer than 4"):
                await describe(stock, alice, least=4)
            assert not hashed

    run_virtual(scenario())


def test_streams_are_bounded_in_number_and_time() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock, AsyncExitStack() as stack:
            alice = await stock.donor("alice", make_state())
            manifest = await describe(stock, alice)
            streams = [await stack.enter_async_context(opened(stock, alice)) for _ in range(donors.MOST_STREAMS)]
            for stream in streams:
                assert await ask(stream, manifest.digest) is not None
            async with opened(stock, alice) as stream:
                with pytest.raises(OverloadedError, match="alice gives state to 8 others already"):
                    await ask(stream, manifest.digest)
            # Who asks for nothing for a while makes room.
            with pytest.raises(DeadlineError, match="nothing was asked for 4 s"):
                await streams[0].receive()
            async with opened(stock, alice) as stream:
                await describe(stock, alice)
                assert await ask(stream, manifest.digest) is not None

    run_virtual(scenario())


def test_a_replay_that_nobody_asks_for_properly_is_refused() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", make_state())
            transport = stock.network.transport("newcomer")
            async with transport.stream(alice.sibling.endpoint, REPLAY) as stream:
                await stream.finish()
                with pytest.raises(MessageError, match="without a message"):
                    await stream.receive()
            async with transport.stream(alice.sibling.endpoint, REPLAY) as stream:
                await stream.send(messages.encode(Replay(RUN, STAGE, 3, make_state().digest)))
                with pytest.raises(StaleError, match="alice does not keep the rounds from 3 on"):
                    await stream.receive()

    run_virtual(scenario())


def test_rounds_that_do_not_lead_to_the_latest_state_are_not_given() -> None:
    """The donor itself has taken a snapshot since."""

    async def scenario() -> None:
        async with Stock.open() as stock:
            begin = make_state()
            history = rounds(begin, 3)
            alice = await stock.donor("alice", history[-1][1], [one for one, _ in history[:2]])
            transport = stock.network.transport("newcomer")
            async with transport.stream(alice.sibling.endpoint, REPLAY) as stream:
                await stream.send(messages.encode(Replay(RUN, STAGE, begin.round, begin.digest)))
                with pytest.raises(StaleError, match="alice does not keep the rounds from 3 on"):
                    await stream.receive()

    run_virtual(scenario())
