"""Whole states pulled from several donors, which break, hang, lie and go on meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

from distqat.averaging import catchup, messages
from distqat.averaging.context import Context, Sibling
from distqat.averaging.group import Stale
from distqat.averaging.outer import OuterState
from distqat.averaging.spans import Shape
from distqat.averaging.state import snapshot
from distqat.averaging.state.messages import SERVICE, Describe
from distqat.averaging.state.snapshot import ChunkRef
from distqat.errors import StateError
from distqat.ids import Endpoint, PeerId
from distqat.model.device import Device
from distqat.rpc.grpc import open_transport
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service, Stream
from tests.averaging.state.stock import RUN, SHAPES, STAGE, Giver, Stock, after, make_state, num_chunks, slowly, touched
from tests.support import run, run_virtual

SIZE = 256
CHUNKS = num_chunks(SIZE)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", SIZE)


def stale(giver: Giver, state: OuterState) -> Stale:
    return Stale(giver.sibling.peer, giver.sibling.endpoint, state.round, state.digest)


def same(state: OuterState, other: OuterState) -> bool:
    return (
        torch.equal(state.anchor, other.anchor)
        and torch.equal(state.momentum, other.momentum)
        and (state.round, state.members, state.digest) == (other.round, other.members, other.digest)
    )


def test_several_donors_give_one_state_and_no_chunk_twice() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            state = make_state()
            givers = await stock.donors(state, "alice", "bob", "carol")
            got = await catchup.fetch(stock.asker(), stock.siblings)
            assert same(got, state)
            assert sum(stock.asked.values()) == len(stock.asked) == CHUNKS
            assert all(CHUNKS / 6 < sum(giver.asked.values()) < CHUNKS / 2 for giver in givers)

    run_virtual(scenario())


def test_a_slow_donor_gives_less_and_keeps_nobody_waiting() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice, bob = await stock.donors(make_state(), "alice", "bob")
            alice.hook, bob.hook = slowly(0.02), slowly(0.8)
            began = asyncio.get_running_loop().time()
            assert same(await catchup.fetch(stock.asker(), stock.siblings), make_state())
            # Alone the fast one takes 0.02 s for each; the slow one's last chunk is taken over.
            assert asyncio.get_running_loop().time() - began < 0.02 * CHUNKS + 0.5
            assert sum(bob.asked.values()) <= 4

    run_virtual(scenario())


@pytest.mark.parametrize("when", [0, 1, 2, 7, CHUNKS // 3 - 1])
@pytest.mark.parametrize("fault", ["crash", "stop"])
def test_a_donor_that_dies_or_hangs_costs_its_chunks_under_way(fault: str, when: int) -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            givers = await stock.donors(make_state(), "alice", "bob", "carol")

            async def die() -> None:
                if fault == "crash":
                    stock.network.crash("bob")
                else:
                    await asyncio.Event().wait()

            givers[1].hook = after(when, die)
            began = asyncio.get_running_loop().time()
            assert same(await catchup.fetch(stock.asker(), stock.siblings), make_state())
            assert sum(stock.asked.values()) <= CHUNKS + 2
            # Not even the wait for progress of one that hangs is waited for, since others can give the same.
            assert asyncio.get_running_loop().time() - began < 1.5

    run_virtual(scenario())


@pytest.mark.parametrize("when", [0, 1, 5, CHUNKS - 1])
def test_the_only_donor_breaks_off_and_the_transfer_goes_on_where_it_was(when: int) -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            [alice] = await stock.donors(make_state(), "alice")

            async def cut() -> None:
                stock.network.partition({"alice"}, {"newcomer"})
                stock.network.heal()

            alice.hook = after(when, cut)
            context = stock.asker()
            if when == 0:
                # It has given nothing at all, so it is not asked again by itself.
                with pytest.raises(StateError, match=r"alice: .* was cut"):
                    await catchup.fetch(context, stock.siblings)
            assert same(await catchup.fetch(context, stock.siblings), make_state())
            assert sum(alice.asked.values()) <= CHUNKS + 2
            assert alice.calls["Fetch"] == 2

    run_virtual(scenario())


def test_the_only_donor_hangs_and_the_asker_says_so() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            [alice] = await stock.donors(make_state(), "alice")
            alice.hook = slowly(1000.0)
            with pytest.raises(StateError, match=r"alice: no state from alice for 2 s"):
                await catchup.fetch(stock.asker(), stock.siblings)

    run_virtual(scenario())


def test_a_wrong_chunk_is_refused_by_name_and_its_donor_not_asked_again() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            alice, mallory = await stock.donors(make_state(), "alice", "mallory")

            async def corrupt(chunk: ChunkRef, data: bytes) -> bytes:
                return data[:-1] + bytes([data[-1] ^ 1]) if mallory.asked.total() == 3 else data

            async def cut() -> None:
                # What is left is asked for again, but not there.
                stock.network.partition({"alice"}, {"newcomer"})
                stock.network.heal()

            mallory.hook, alice.hook = corrupt, after(CHUNKS // 2, cut)
            assert same(await catchup.fetch(stock.asker(), stock.siblings), make_state())
            assert alice.calls == {"Describe": 1, "Fetch": 2}
            assert mallory.asked.total() <= 4
            assert mallory.calls == {"Describe": 1, "Fetch": 1}
            assert alice.asked.total() >= CHUNKS - 3

    run_virtual(scenario())


def test_alone_with_a_liar_the_asker_says_what_is_wrong() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            [mallory] = await stock.donors(make_state(), "mallory")

            async def corrupt(chunk: ChunkRef, data: bytes) -> bytes:
                return data[:-1] + bytes([data[-1] ^ 1])

            mallory.hook = corrupt
            with pytest.raises(StateError, match="mallory: chunk 0 of fragment 0 has another hash than its manifest"):
                await catchup.fetch(stock.asker(), stock.siblings)

    run_virtual(scenario())


def test_a_chunk_that_nobody_asked_for_is_refused() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            [mallory] = await stock.donors(make_state(), "mallory")

            async def other(chunk: ChunkRef, data: bytes) -> bytes:
                return messages.frame(ChunkRef(2, 1), data[-SIZE:])

            mallory.hook = other
            with pytest.raises(
                StateError, match=r"mallory sends ChunkRef\(part=2, index=1\), for which it was not asked"
            ):
                await catchup.fetch(stock.asker(), stock.siblings)

    run_virtual(scenario())


def test_when_the_donors_go_on_only_what_has_changed_is_fetched_again() -> None:
    """The state under way is held for those who fetch it, but here it is dropped: as if two newer ones were shown."""

    async def scenario() -> None:
        async with Stock.open() as stock:
            givers = await stock.donors(make_state(), "alice", "bob")
            later = touched(make_state(), 0)

            async def go_on() -> None:
                for giver in givers:
                    giver.commit(later)
                    giver.donor.close()

            givers[0].hook = after(CHUNKS // 3, go_on)
            assert same(await catchup.fetch(stock.asker(), stock.siblings), later)
            twice = {chunk for chunk, count in stock.asked.items() if count > 1}
            # Of the fragments that stayed, only what was under way is asked for again.
            assert len([chunk for chunk in twice if chunk.part != 0]) <= 4
            assert len([chunk for chunk in twice if chunk.part == 0]) > 10

    run_virtual(scenario())


def test_a_state_that_is_fetched_is_held_while_rounds_go_on() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            [alice] = await stock.donors(make_state(), "alice")

            async def go_on() -> None:
                alice.commit(touched(make_state(), 1))

            alice.hook = after(3, go_on)
            assert same(await catchup.fetch(stock.asker(), stock.siblings), make_state())
            assert max(stock.asked.values()) == 1

    run_virtual(scenario())


def test_a_state_that_is_held_is_fetched_to_its_end_although_the_links_broke_as_the_donors_went_on() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            givers = await stock.donors(make_state(), "alice", "bob")

            async def go_on() -> None:
                for giver in givers:
                    giver.commit(later)
                stock.network.partition({"alice", "bob"}, {"newcomer"})
                stock.network.heal()

            later = make_state(7, number=4)
            givers[0].hook = after(CHUNKS // 3, go_on)
            assert same(await catchup.fetch(stock.asker(), stock.siblings), make_state())
            assert all(giver.calls == {"Describe": 1, "Fetch": 2} for giver in givers)
            assert sum(stock.asked.values()) <= CHUNKS + 4

    run_virtual(scenario())


def test_donors_that_always_go_on_before_they_give_are_given_up() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            [alice] = await stock.donors(make_state(), "alice")

            async def go_on(chunk: ChunkRef, data: bytes) -> bytes:
                return data

            alice.hook = go_on
            inner = alice.donor.fetch

            async def fetch(stream: Stream, caller: Caller) -> None:
                assert alice.held.outer is not None
                alice.commit(touched(alice.held.outer, 1))
                alice.donor.close()
                await inner(stream, caller)

            alice.donor.fetch = fetch  # type: ignore[method-assign]
            stock.network.servers[alice.sibling.endpoint].add(alice.service())
            with pytest.raises(StateError, match=r"alice does not hold the state .* any more"):
                await catchup.fetch(stock.asker(), stock.siblings)
            assert alice.calls["Describe"] == catchup.MOST_MOVES

    run_virtual(scenario())


def test_a_sibling_that_is_behind_fetches_the_fragments_that_have_changed() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            mine = make_state()
            newer = touched(mine, 1)
            [alice] = await stock.donors(newer, "alice")
            caught = await catchup.advance(stock.asker(), mine, stale(alice, newer))
            assert same(caught.state, newer)
            assert not caught.is_replayed
            assert {chunk.part for chunk in stock.asked} == {1}
            assert caught.state.parts[0] is mine.parts[0]

    run_virtual(scenario())


def test_chunks_of_a_changed_fragment_that_are_equal_do_not_travel() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            mine = make_state()
            parts = list(mine.parts)
            anchor = parts[0].anchor.clone()
            anchor[10] += 1.0
            parts[0] = type(parts[0]).of(anchor, parts[0].momentum)
            newer = OuterState.of(parts, mine.round + 9, mine.members)
            [alice] = await stock.donors(newer, "alice")
            caught = await catchup.advance(stock.asker(), mine, stale(alice, newer))
            assert same(caught.state, newer)
            assert list(stock.asked) == [ChunkRef(0, 0)]
            # What the sibling holds was not written into.
            assert same(mine, make_state())

    run_virtual(scenario())


def test_the_most_advanced_state_is_taken_then_the_one_that_most_hold() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            old, fork = make_state(0, number=2), make_state(7, number=3)
            await stock.donors(old, "alice", "bob", "carol")
            await stock.donors(fork, "dave")
            assert same(await catchup.fetch(stock.asker(), stock.siblings), fork)
            await stock.donors(make_state(), "erin", "frank")
            assert same(await catchup.fetch(stock.asker(), stock.siblings), make_state())
            # Donors that are gone do not matter, and the next best are asked.
            for name in ("dave", "erin", "frank"):
                stock.network.crash(name)
            assert same(await catchup.fetch(stock.asker(), stock.siblings), old)

    run_virtual(scenario())


def test_more_donors_than_are_asked_at_once() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            names = [f"donor-{number:02}" for number in range(catchup.MOST_DONORS + 2)]
            await stock.donors(make_state(), *names)
            for name in names[:-1]:
                stock.network.crash(name)
            assert same(await catchup.fetch(stock.asker(), stock.siblings), make_state())

    run_virtual(scenario())


def test_a_sibling_never_goes_back_behind_what_it_was_offered() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            old, newer = make_state(0, number=2), make_state(1, number=9)
            alice, _ = await stock.donor("alice", newer), await stock.donor("bob", old)
            stock.network.crash("alice")
            with pytest.raises(StateError, match="bob has committed 2 rounds, fewer than 9"):
                await catchup.advance(stock.asker(), old, stale(alice, newer))

    run_virtual(scenario())


def test_a_manifest_that_lies_about_the_whole_is_refused_and_the_truth_taken() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            await stock.donors(make_state(), "alice")
            [mallory] = await stock.donors(replace(make_state(), round=4, digest="0" * 32), "mallory")
            assert same(await catchup.fetch(stock.asker(), stock.siblings), make_state())
            assert mallory.calls["Describe"] == 1
            with pytest.raises(StateError, match="mallory: the state of round 4 does not match its digest"):
                await catchup.fetch(stock.asker(), [mallory.sibling])

    run_virtual(scenario())


def test_sizes_are_checked_before_anything_is_asked_for() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            shapes = (Shape(500, 521), *SHAPES[1:])
            [mallory] = await stock.donors(make_state(shapes=shapes), "mallory")
            with pytest.raises(StateError, match="mallory: fragment 0 is not that of this stage"):
                await catchup.fetch(stock.asker(), stock.siblings)
            assert not mallory.calls["Fetch"]

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("garbage", "bytes that are not a Manifest"), ("silent", "no answer in time"), ("absent", "is not served")],
)
def test_a_donor_that_describes_nothing_is_left_alone(answer: str, reason: str) -> None:
    async def describe(request: bytes, caller: Caller) -> bytes:
        if answer == "garbage":
            return b"\xff\xfe"
        await asyncio.Event().wait()
        return b""

    async def scenario() -> None:
        async with Stock.open() as stock, stock.network.transport("mallory").serve(Endpoint("mallory", 0)) as server:
            if answer != "absent":
                server.add(Service(SERVICE, {"Describe": describe}))
            donor = Sibling(PeerId("mallory"), server.endpoint, 3, "x", True)
            with pytest.raises(StateError, match=f"no donor of stage 1 .mallory: .*{reason}"):
                await catchup.fetch(stock.asker(), [donor])

    run_virtual(scenario())


def test_without_a_donor_it_says_so() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            with pytest.raises(StateError, match=r"no donor of stage 1 .none is known"):
                await catchup.fetch(stock.asker(), [])
            empty = await stock.donor("alice", None)
            with pytest.raises(StateError, match="alice has no committed state yet"):
                await catchup.fetch(stock.asker(), [empty.sibling])
            with pytest.raises(StateError, match="none is known"):
                await catchup.fetch(stock.asker(), [replace(empty.sibling, ready=False)])

    run_virtual(scenario())


def test_a_transfer_that_takes_for_ever_ends() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            [alice] = await stock.donors(make_state(), "alice")
            alice.hook = slowly(1.9)
            context = stock.asker()
            with pytest.raises(StateError, match="was not here after"):
                await catchup.fetch(context, stock.siblings)
            assert asyncio.get_running_loop().time() <= context.waits.total + 0.1

    run_virtual(scenario())


def test_memory_stays_within_what_has_to_come() -> None:
    """Chunks that are asked for and not here yet are few, however large the state is."""

    async def scenario() -> None:
        async with Stock.open() as stock:
            givers = await stock.donors(make_state(), "alice", "bob", "carol")
            under_way: list[int] = [0]
            most: list[int] = [0]

            async def count(chunk: ChunkRef, data: bytes) -> bytes:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
                await asyncio.sleep(0.1)
                under_way[0] -= 1
                return data

            for giver in givers:
                giver.hook = count
            await catchup.fetch(stock.asker(), stock.siblings)
            assert most[0] <= 2 * len(givers)

    run_virtual(scenario())


def test_over_real_sockets() -> None:
    """Two donors and 12 MB; the state is the same, and no more than it travels."""

    async def scenario(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshot, "CHUNK_BYTES", 1 << 20)
        shapes = (Shape(1_000_000, 1_000_100), Shape(500_000, 500_000))
        state = make_state(shapes=shapes)
        async with (
            Stock.open(Network(), shapes=shapes) as stock,
            open_transport() as first,
            open_transport() as second,
            open_transport() as mine,
            Device.open("cpu", threads=1) as device,
        ):
            alice = await stock.donor("alice", state, transport=first, host="127.0.0.1", device=device)
            bob = await stock.donor("bob", state, transport=second, host="127.0.0.1", device=device)
            context: Context = stock.asker(mine, device)
            assert same(await catchup.fetch(context, stock.siblings), state)
            assert alice.asked.total() > 2
            assert bob.asked.total() > 2
            assert mine.traffic()["state"].received < 1.2 * context.state_bytes

            async def die() -> None:
                raise StateError("its disk is gone")

            bob.hook = after(2, die)
            assert same(await catchup.fetch(context, stock.siblings), state)

    with pytest.MonkeyPatch.context() as monkeypatch:
        run(scenario(monkeypatch))


def test_state_is_described_to_the_own_run_and_stage_only() -> None:
    async def scenario() -> None:
        async with Stock.open() as stock:
            [alice] = await stock.donors(make_state(), "alice")
            stranger = replace(stock.asker(), run=replace(RUN, name="other"))
            with pytest.raises(StateError, match="works for run test@00000000, not other@00000000"):
                await catchup.fetch(stranger, stock.siblings)
            above = replace(stock.asker(), stage=type(STAGE)(2))
            with pytest.raises(StateError, match="hosts stage 1, not 2"):
                await catchup.fetch(above, stock.siblings)
            assert not alice.calls["Fetch"]
            assert messages.decode(Describe, messages.encode(Describe(RUN, STAGE, 3))).round == 3

    run_virtual(scenario())
