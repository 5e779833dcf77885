"""Rounds that were missed, replayed from those who keep them; and what happens when nobody does."""

from __future__ import annotations

import asyncio

import pytest

from distqat.averaging import catchup, messages
from distqat.averaging.catchup import Caught
from distqat.averaging.group import Stale
from distqat.averaging.outer import OuterState
from distqat.averaging.state import snapshot
from distqat.averaging.state.messages import SERVICE, KeptRound, ReplayHeader
from distqat.rpc.transport import Caller, Service, Stream
from distqat.rpc.wrapped import WrappedStream
from distqat.wire.frames import Chunk
from tests.averaging.state.stock import Giver, Stock, make_state, rounds
from tests.support import run_virtual

BEGIN = make_state(number=1)
MISSED = rounds(BEGIN, 4, "int8")
KEPT = [one for one, _ in MISSED]
LATEST = MISSED[-1][1]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 256)


async def advance(stock: Stock, leader: Giver, state: OuterState = BEGIN, to: OuterState = LATEST) -> Caught:
    stale = Stale(leader.sibling.peer, leader.sibling.endpoint, to.round, to.digest)
    return await catchup.advance(stock.asker(), state, stale)


def test_a_few_missed_rounds_are_replayed() -> None:
    """One in the warm-up of all fragments, then one of each fragment in turn."""

    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", LATEST, KEPT)
            caught = await advance(stock, alice)
            assert caught.is_replayed
            assert caught.state.digest == LATEST.digest
            assert [one.digest for one in caught.rounds] == [one.digest for one in KEPT]
            assert alice.calls == {"Replay": 1}
            # A fraction of what the state would take.
            received = sum(len(one.payload) for one in KEPT)
            assert received < stock.asker().state_bytes / 3

    run_virtual(scenario())


@pytest.mark.parametrize("missed", [1, 2, 3])
def test_only_what_was_missed_is_replayed(missed: int) -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", LATEST, KEPT)
            caught = await advance(stock, alice, MISSED[-1 - missed][1])
            assert caught.is_replayed
            assert caught.state.digest == LATEST.digest
            assert len(caught.rounds) == missed

    run_virtual(scenario())


def test_another_donor_has_what_the_first_lacks() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", LATEST, KEPT[2:])
            bob = await stock.donor("bob", LATEST, KEPT)
            caught = await advance(stock, alice)
            assert caught.is_replayed
            assert caught.state.digest == LATEST.digest
            assert alice.calls == bob.calls == {"Replay": 1}

    run_virtual(scenario())


@pytest.mark.parametrize("whole_rounds", [0, 1, 3])
def test_a_donor_that_breaks_off_is_followed_by_the_next_from_where_it_was(whole_rounds: int) -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice, bob = await stock.donor("alice", LATEST, KEPT), await stock.donor("bob", LATEST, KEPT)
            inner = alice.donor.replay

            async def replay(stream: Stream, caller: Caller) -> None:
                await inner(_Broken(stream, stock, whole_rounds), caller)

            stock.network.servers[alice.sibling.endpoint].add(Service(SERVICE, {}, {"Replay": replay}))
            caught = await advance(stock, alice)
            assert caught.is_replayed
            assert caught.state.digest == LATEST.digest
            assert len(caught.rounds) == 4
            assert bob.calls == {"Replay": 1}

    run_virtual(scenario())


class _Broken(WrappedStream):
    """A donor's stream that breaks after so many rounds and one frame."""

    def __init__(self, inner: Stream, stock: Stock, rounds: int) -> None:
        super().__init__(inner)
        self.stock = stock
        self.left = rounds + 1

    async def send(self, data: bytes, more: bool = False) -> None:
        self.left -= messages.unframe(ReplayHeader, data)[0].kept is not None
        await super().send(data, more)
        if not self.left:
            await asyncio.sleep(1.0)
            self.stock.network.crash("alice")


def test_who_missed_more_than_is_kept_pulls_the_snapshot() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            begin = make_state(number=0)
            history = rounds(begin, 6, "int8")
            latest = history[-1][1]
            alice = await stock.donor("alice", latest, [one for one, _ in history])
            caught = await advance(stock, alice, begin, latest)
            assert not caught.is_replayed
            assert caught.state.digest == latest.digest
            # More than `kept_rounds` behind: nobody can have them.
            assert not alice.calls["Replay"]
            caught = await advance(stock, alice, history[0][1], latest)
            assert not caught.is_replayed or caught.state.digest == latest.digest

    run_virtual(scenario())


@pytest.mark.parametrize("fault", ["digest", "payload", "fork", "garbage", "silent", "nameless", "size"])
def test_rounds_that_do_not_end_where_they_should_lead_to_the_snapshot(fault: str) -> None:
    async def replay(stream: Stream, caller: Caller) -> None:
        await stream.receive()
        history = rounds(BEGIN, 4, "int4") if fault == "fork" else MISSED
        for one, _ in history:
            digest = "0" * 32 if fault == "digest" else one.digest
            said: KeptRound | None = KeptRound(one.round, one.before, digest, one.members, one.codec)
            data = bytes(one.payload)
            total = len(data)
            if fault == "payload":
                data = data[:-1] + b"\x55"
            elif fault == "garbage":
                await stream.send(b"\xff\xff")
            elif fault == "silent":
                await asyncio.Event().wait()
            elif fault == "nameless":
                said = None
            elif fault == "size":
                total = 1 << 50
            await stream.send(messages.frame(ReplayHeader(said, Chunk(0, total)), data))

    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", LATEST, [])
            inner = alice.service()
            server = stock.network.servers[alice.sibling.endpoint]
            server.add(Service(SERVICE, inner.calls, {**inner.streams, "Replay": replay}))
            caught = await advance(stock, alice)
            assert not caught.is_replayed
            assert not caught.rounds
            assert caught.state.digest == LATEST.digest

    run_virtual(scenario())


def test_no_more_is_taken_than_the_whole_state_would_be() -> None:
    history = rounds(BEGIN, 12)

    async def replay(stream: Stream, caller: Caller) -> None:
        await stream.receive()
        for one, _ in history:
            said = KeptRound(one.round, one.before, one.digest, one.members, one.codec)
            await stream.send(messages.frame(ReplayHeader(said, Chunk(0, len(one.payload))), one.payload))

    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", history[-1][1])
            stock.network.servers[alice.sibling.endpoint].add(Service(SERVICE, {}, {"Replay": replay}))
            caught = await advance(stock, alice, BEGIN, history[2][1])
            assert 3 <= len(caught.rounds) < 12
            assert sum(len(one.payload) for one in caught.rounds) <= stock.asker().state_bytes

    run_virtual(scenario())


def test_a_sibling_of_another_history_pulls_the_snapshot() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", LATEST, KEPT)
            caught = await advance(stock, alice, make_state(5, number=1))
            assert not caught.is_replayed
            assert caught.state.digest == LATEST.digest

    run_virtual(scenario())


def test_a_donor_whose_rounds_end_before_its_state_does_not_offer_them() -> None:
    """It has caught up by a snapshot itself: what it kept before leads to an older state."""

    async def scenario() -> None:
        async with Stock.open() as stock:
            alice = await stock.donor("alice", LATEST, KEPT[:2])
            caught = await advance(stock, alice)
            assert not caught.is_replayed
            assert caught.state.digest == LATEST.digest

    run_virtual(scenario())
