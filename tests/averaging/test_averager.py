from __future__ import annotations

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.averaging import outer
from distqat.averaging.group import Invite
from distqat.averaging.phases import phase
from distqat.errors import RoundError, TensorError
from distqat.rpc.local import Network
from tests.averaging import naive
from tests.averaging.swarm import DILOCO, PLAIN, Node, Swarm, founded, moved, together
from tests.averaging.words import committed, founding, round_ref
from tests.support import run_virtual, until


def digests(nodes: list[Node]) -> set[str]:
    return {node.digest for node in nodes}


def test_a_lone_sibling_commits_by_itself_at_once() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (swarm, [alice]):
            local = moved(swarm, 0.1)
            outcome = await alice.averager.synchronise(local, 5)
            assert outcome.state.anchor.numpy().tobytes() == local.numpy().tobytes()
            [receipt] = alice.averager.receipts
            assert (receipt.round, receipt.contributors, receipt.samples) == (0, ("alice",), 5)
            assert (receipt.bytes, receipt.seconds, receipt.lost) == (0, 0.0, ())
            assert receipt.digest == alice.digest

    run_virtual(scenario())


def test_unequal_samples_over_three_rounds_against_the_oracle() -> None:
    """What three siblings agree on over the network is, bit for bit, what one loop in one process works out."""

    async def scenario() -> None:
        async with founded(["alice", "bob", "carol"], DILOCO, parameters=17, buffers=3) as (swarm, nodes):
            expected = founding(swarm.start(), swarm.parameters)
            draw = torch.Generator().manual_seed(3)
            for number in range(3):
                locals_ = [expected.anchor + torch.randn(20, generator=draw) for _ in nodes]
                samples = [32, 96, 7 + number]
                await together(
                    *(
                        node.averager.synchronise(local, count)
                        for node, local, count in zip(nodes, locals_, samples, strict=True)
                    )
                )
                how = phase(number, DILOCO)
                parts = [naive.delta(expected, local, how) for local in locals_]
                members = [node.peer for node in nodes]
                expected = outer.apply(expected, naive.weighted_mean(parts, samples), how, members)
                assert digests(nodes) == {expected.digest}
                assert all(torch.equal(node.anchor, expected.anchor) for node in nodes)

    run_virtual(scenario())


@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=5), st.integers(1, 30))
def test_against_the_naive_average(samples: list[int], parameters: int) -> None:
    async def scenario() -> None:
        names = [f"peer{index}" for index in range(len(samples))]
        async with founded(names, parameters=parameters, buffers=0) as (swarm, nodes):
            locals_ = [torch.randn(parameters) for _ in nodes]
            await together(
                *(
                    node.averager.synchronise(local, count)
                    for node, local, count in zip(nodes, locals_, samples, strict=True)
                )
            )
            total = sum(samples)
            naive = swarm.start()
            if total:
                naive = sum((local * count for local, count in zip(locals_, samples, strict=True)), torch.tensor(0.0))
                naive = naive / total
            assert len(digests(nodes)) == 1
            assert torch.allclose(nodes[0].anchor, naive, atol=1e-5)
            assert {node.sibling.round for node in nodes} == {1 if total else 0}

    run_virtual(scenario())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_arrival_changes_no_bit(order: tuple[int, ...]) -> None:
    async def scenario() -> str:
        async with founded(["alice", "bob", "carol"], network=Network(delay=0.01)) as (_swarm, nodes):

            async def arrive(place: int) -> None:
                await asyncio.sleep(0.3 * order.index(place))
                await nodes[place].averager.synchronise(torch.randn(10, generator=seeded(place)), place + 1)

            await together(*(arrive(place) for place in range(3)))
            assert len(digests(nodes)) == 1
            return nodes[0].digest

    def seeded(place: int) -> torch.Generator:
        return torch.Generator().manual_seed(place)

    digest = run_virtual(scenario())
    parts = [torch.randn(10, generator=seeded(place)) for place in range(3)]
    average = naive.weighted_mean(parts, [1, 2, 3])
    assert digest == committed(average, torch.zeros(8), 1, ["alice", "bob", "carol"]).digest


def test_siblings_whose_first_numbers_differ_agree_after_one_round() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.005), DILOCO)
        async with swarm.node("alice") as alice, swarm.node("bob") as bob:
            await alice.averager.found(swarm.start())
            await bob.averager.found(swarm.start() + 1000.0)
            assert len(digests([alice, bob])) == 2
            await together(
                alice.averager.synchronise(moved(swarm, 0.5), 4), bob.averager.synchronise(moved(swarm, 1000.5), 4)
            )
            assert len(digests([alice, bob])) == 1
            assert alice.sibling.round == bob.sibling.round == 1
            # One of them was taken as the right one, and the other only received.
            assert len(alice.averager.receipts[-1].contributors) == 1

    run_virtual(scenario())


def test_of_three_anchors_the_one_that_two_hold_counts() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.005), PLAIN)
        async with swarm.node("alice") as alice, swarm.node("bob") as bob, swarm.node("carol") as carol:
            for node, shift in ((alice, 0.0), (bob, 0.0), (carol, 50.0)):
                await node.averager.found(swarm.start() + shift)
            await together(*(node.averager.synchronise(node.anchor + 1, 2) for node in (alice, bob, carol)))
            assert len(digests([alice, bob, carol])) == 1
            assert carol.averager.receipts[-1].contributors == ("alice", "bob")
            assert torch.equal(carol.anchor, moved(swarm, 1.0))

    run_virtual(scenario())


def test_is_due() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(), DILOCO)
        async with swarm.node("alice") as alice:
            assert not alice.averager.is_due(1000)
            await alice.averager.found(swarm.start())
            assert not alice.averager.is_due(9)
            assert alice.averager.is_due(10)

    run_virtual(scenario())


def test_nobody_has_trained_so_the_anchor_stands() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"], DILOCO) as (swarm, nodes):
            results = await together(*(node.averager.synchronise(swarm.start(), 0) for node in nodes))
            assert all(torch.equal(result.state.anchor, swarm.start()) for result in results)
            assert all(node.sibling.round == 0 and not node.averager.receipts for node in nodes)
            assert not any(node.averager.invited for node in nodes)

    run_virtual(scenario())


def test_what_does_not_fit_is_refused_before_anything_happens() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(), PLAIN)
        async with swarm.node("alice") as alice:
            with pytest.raises(RoundError, match="no committed state"):
                await alice.averager.synchronise(swarm.start(), 1)
            with pytest.raises(TensorError, match=r"float32 \(10,\)"):
                await alice.averager.found(torch.zeros(9))
            await alice.averager.found(swarm.start())
            for bad in (torch.zeros(9), torch.zeros(2, 5), torch.zeros(10, dtype=torch.float64)):
                with pytest.raises(TensorError, match=r"float32 \(10,\)"):
                    await alice.averager.synchronise(bad, 1)
            assert alice.sibling.round == 0

    run_virtual(scenario())


def test_one_round_at_a_time() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"]) as (swarm, [alice, bob]):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(alice.averager.synchronise(swarm.start(), 1))
                await asyncio.sleep(0.1)
                with pytest.raises(RoundError, match="under way"):
                    await alice.averager.synchronise(swarm.start(), 1)
                with pytest.raises(RoundError, match="under way"):
                    await alice.averager.catch_up([bob.sibling])
                await bob.averager.synchronise(swarm.start(), 1)
                await task
            assert len(digests([alice, bob])) == 1

    run_virtual(scenario())


def test_a_cancelled_call_leaves_everything_as_it_was() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"]) as (swarm, [alice, bob]):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(alice.averager.synchronise(moved(swarm, 1.0), 1))
                await asyncio.sleep(0.3)
                task.cancel()
            assert alice.sibling.round == 0
            assert torch.equal(alice.anchor, swarm.start())
            # And the next call works.
            await together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in (alice, bob)))
            assert len(digests([alice, bob])) == 1
            assert alice.sibling.round == 1

    run_virtual(scenario())


def test_what_was_learned_before_a_cancelled_catch_up_is_not_contributed() -> None:
    """The anchor has moved, so local values that began at the old one would be a wrong pseudo-gradient."""

    async def scenario() -> None:
        async with founded(["alice", "bob"], DILOCO, Network(delay=0.01)) as (swarm, [alice, bob]):
            swarm.hidden = {("bob", "alice")}
            await bob.averager.synchronise(moved(swarm, 3.0), 1)
            bob.averager.pursuit.consider(Invite(round_ref(1), alice.peer, alice.averager.context.endpoint))
            async with asyncio.TaskGroup() as group:
                task = group.create_task(alice.averager.synchronise(moved(swarm, 5.0), 7))
                alice.averager.pursuit.consider(Invite(round_ref(9), bob.peer, bob.averager.context.endpoint))
                await until(lambda: alice.sibling.round == 1)
                task.cancel()
            assert alice.digest == bob.digest
            swarm.hidden.clear()
            await together(
                alice.averager.synchronise(moved(swarm, 5.0), 7), bob.averager.synchronise(bob.anchor + 0.5, 1)
            )
            assert alice.averager.receipts[-1].contributors == ("bob",)
            assert alice.digest == bob.digest

    run_virtual(scenario())
