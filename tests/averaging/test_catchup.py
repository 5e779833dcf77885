from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

from distqat.averaging import catchup, messages
from distqat.averaging.context import Sibling
from distqat.averaging.group import RoundRef
from distqat.averaging.messages import Fetch, StateHeader
from distqat.averaging.outer import OuterState
from distqat.errors import MessageError, RefusedError, StateError, WrongRunError
from distqat.ids import Endpoint, PeerId, RunId, StageIndex
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Deadline, Service, Stream
from distqat.wire.frames import Chunk
from tests.averaging.swarm import DILOCO, RUN, STAGE, Swarm, founded, moved, together
from tests.averaging.trap import Trap
from tests.support import run_virtual


def test_a_newcomer_has_exactly_the_anchor_and_momentum_of_its_siblings() -> None:
    async def scenario() -> None:
        # 600,000 elements travel in several chunks.
        async with founded(["alice", "bob"], DILOCO, Network(delay=0.01), parameters=600_000) as (swarm, nodes):
            for number in range(2):
                await together(*(node.averager.synchronise(moved(swarm, 0.3 * number), 1) for node in nodes))
            async with swarm.node("carol") as carol:
                assert not carol.sibling.ready
                state = await carol.averager.catch_up(swarm.siblings(carol.peer))
                for node in nodes:
                    assert node.averager.outer is not None
                    assert torch.equal(state.anchor, node.averager.outer.anchor)
                    assert torch.equal(state.momentum, node.averager.outer.momentum)
                    assert (state.round, state.digest) == (2, node.digest)
                # From now on it is one of them.
                everyone = [*nodes, carol]
                await together(*(node.averager.synchronise(node.anchor + 0.1, 1) for node in everyone))
                assert len({node.digest for node in everyone}) == 1
                assert len(carol.averager.receipts[-1].contributors) == 3

    run_virtual(scenario())


def test_the_donor_trains_on_while_it_donates() -> None:
    """What is streamed is the state of the moment of asking, whole, although a round is committed meanwhile."""

    async def scenario() -> None:
        network = Network(delay=0.01)
        async with founded(["alice"], DILOCO, network, parameters=600_000) as (swarm, [alice]):
            before = alice.digest
            trap = Trap(network.transport("bob"))
            async with swarm.node("bob", trap) as bob:

                async def later() -> None:
                    # The request is there after 0.03 s, the first chunk back after 0.04 s.
                    await asyncio.sleep(0.035)
                    await alice.averager.synchronise(moved(swarm, 1.0), 1)
                    assert bob.averager.outer is None

                results = await together(bob.averager.catch_up([alice.sibling]), later())
                assert isinstance(results[0], OuterState)
                assert results[0].digest == before != alice.digest

    run_virtual(scenario())


def test_the_most_advanced_donor_is_asked_first_and_the_next_if_it_fails() -> None:
    async def scenario() -> None:
        network = Network(delay=0.01)
        async with founded(["alice", "bob", "dave"], DILOCO, network) as (swarm, [alice, bob, dave]):
            swarm.hidden = {("alice", "bob"), ("alice", "dave"), ("bob", "alice"), ("dave", "alice")}
            await alice.averager.synchronise(moved(swarm, 1.0), 1)
            donors = [bob.sibling, dave.sibling, alice.sibling]
            async with swarm.node("carol") as carol:
                assert (await carol.averager.catch_up(donors)).digest == alice.digest
                network.crash("alice")
                assert (await carol.averager.catch_up(donors)).digest == bob.digest

    run_virtual(scenario())


def test_without_a_donor_it_waits_and_says_so() -> None:
    async def scenario() -> None:
        network = Network()
        swarm = Swarm(network, DILOCO)
        async with swarm.node("alice") as alice, swarm.node("bob") as bob:
            with pytest.raises(StateError, match="no donor of stage 1"):
                await alice.averager.catch_up([])
            assert "waiting: no donor of stage 1" in str(alice.averager.reason)
            # One that has nothing itself is no donor, whatever its record says.
            liar = replace(bob.sibling, ready=True, round=5, digest="x")
            with pytest.raises(StateError, match="bob has no committed state yet"):
                await alice.averager.catch_up([liar])
            gone = Sibling(PeerId("carol"), Endpoint("carol", 1), 3, "x", True)
            with pytest.raises(StateError, match="carol: nobody listens"):
                await alice.averager.catch_up([gone])

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("digest", "does not match its digest"),
        ("length", "is not that of this stage"),
        ("missing", "is not that of this stage"),
        ("garbage", "not a frame"),
        ("short", "ended before it was whole"),
        ("silent", "no state from mallory for 2 s"),
    ],
)
def test_a_state_that_is_not_what_it_says_is_refused(change: str, reason: str) -> None:
    async def fetch(stream: Stream, caller: Caller) -> None:
        await stream.receive()
        state = OuterState.founding(torch.arange(10.0), 8)
        if change == "digest":
            await catchup.donate(replace(state, digest="0" * 32), stream, 5.0)
        elif change == "length":
            await catchup.donate(OuterState.founding(torch.arange(11.0), 8), stream, 5.0)
        elif change == "missing":
            await stream.send(messages.frame(StateHeader(None, Chunk(0, 72)), b"\0" * 72))
        elif change == "garbage":
            await stream.send(b"\xff\xfe")
        elif change == "silent":
            await asyncio.Event().wait()

    async def scenario() -> None:
        network = Network(delay=0.01)
        swarm = Swarm(network, DILOCO)
        async with (
            swarm.node("alice") as alice,
            network.transport("mallory").serve(Endpoint("mallory", 0)) as server,
        ):
            server.add(Service(messages.STATE, streams={"Fetch": fetch}))
            donor = Sibling(PeerId("mallory"), server.endpoint, 3, "x", True)
            with pytest.raises(StateError, match=reason):
                await alice.averager.catch_up([donor])
            assert alice.averager.outer is None

    run_virtual(scenario())


def test_state_is_given_to_the_own_run_and_stage_only() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (_swarm, [alice]):
            transport, to = alice.averager.context.transport, alice.averager.context.endpoint
            for request, error, reason in (
                (Fetch(RunId("other", "1"), STAGE), WrongRunError, "works for run test@00000000, not other@1"),
                (Fetch(RunId(RUN.name, "1"), STAGE), WrongRunError, "not test@1"),
                (Fetch(RUN, StageIndex(2)), RefusedError, "hosts stage 1, not 2"),
            ):
                async with transport.stream(to, messages.FETCH, Deadline.after(5)) as stream:
                    await stream.send(messages.encode(request))
                    with pytest.raises(error, match=reason):
                        await stream.receive()
            async with transport.stream(to, messages.FETCH, Deadline.after(5)) as stream:
                await stream.finish()
                with pytest.raises(MessageError, match="without a message"):
                    await stream.receive()

    run_virtual(scenario())


def test_a_sibling_that_missed_rounds_takes_them_at_its_next() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob", "carol"], DILOCO, Network(delay=0.01)) as (swarm, [alice, bob, carol]):
            swarm.hidden = {(node.peer, carol.peer) for node in (alice, bob)}
            for _ in range(3):
                await together(*(node.averager.synchronise(node.anchor + 0.5, 2) for node in (alice, bob)))
            swarm.hidden.clear()
            result = await carol.averager.synchronise(moved(swarm, 9.0), 4)
            assert carol.sibling.round == 3
            assert carol.digest == alice.digest
            assert torch.equal(result, alice.anchor)
            # Its own progress belonged to an old anchor, and nobody had to wait for it.
            assert not carol.averager.receipts
            assert alice.sibling.round == 3

    run_virtual(scenario())


def test_a_sibling_that_missed_rounds_and_is_waited_for_takes_part() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob", "carol"], DILOCO, Network(delay=0.01)) as (swarm, [alice, bob, carol]):
            swarm.hidden = {(node.peer, carol.peer) for node in (alice, bob)}
            await together(*(node.averager.synchronise(node.anchor + 0.5, 2) for node in (alice, bob)))
            swarm.hidden.clear()

            async def late() -> None:
                await carol.averager.wait_invited()
                await carol.averager.synchronise(moved(swarm, 9.0), 4)

            await together(*(node.averager.synchronise(node.anchor + 0.5, 2) for node in (alice, bob)), late())
            assert len({node.digest for node in (alice, bob, carol)}) == 1
            assert [receipt.round for receipt in carol.averager.receipts] == [1]
            assert carol.averager.receipts[-1].contributors == ("alice", "bob")

    run_virtual(scenario())


def test_a_round_ref_reads_well() -> None:
    assert str(RoundRef(RUN, STAGE, 0, 12)) == "round 12 of stage 1"
