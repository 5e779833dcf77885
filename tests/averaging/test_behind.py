"""Siblings that missed rounds, and newcomers, among those that go on: what they hold then, and what they weigh."""

from __future__ import annotations

import asyncio

import pytest
import torch

from distqat.averaging.averager import Outcome
from distqat.averaging.phases import phase
from distqat.averaging.state.messages import FETCH
from distqat.rpc.local import Network
from distqat.rpc.transport import Service
from distqat.sections import SyncSection
from tests.averaging.swarm import DILOCO, Node, Swarm, founded, moved, together
from tests.support import run_virtual

MIXED = SyncSection(warmup_steps=2, inner_steps=10, max_wait=4.0, codec="int8", kept_rounds=4)


async def rounds(swarm: Swarm, nodes: list[Node], count: int) -> None:
    """They commit so many rounds without the others."""
    for number in range(count):
        await together(*(node.averager.synchronise(node.anchor + 0.1 * (number + 1), 2) for node in nodes))


def is_equal(node: Node, other: Node) -> bool:
    one, two = node.averager.outer, other.averager.outer
    assert one is not None
    assert two is not None
    return torch.equal(one.anchor, two.anchor) and torch.equal(one.momentum, two.momentum) and one.digest == two.digest


@pytest.mark.parametrize("missed", [1, 4, 5])
def test_a_sibling_that_missed_rounds_takes_them_at_its_next(missed: int) -> None:
    """Up to four by their averages, which it can give to others then; more as a snapshot."""

    async def scenario() -> None:
        network = Network(delay=0.01)
        async with founded(["alice", "bob", "carol"], MIXED, network) as (swarm, [alice, bob, carol]):
            swarm.hidden = {(node.peer, carol.peer) for node in (alice, bob)}
            await rounds(swarm, [alice, bob], missed)
            assert alice.sibling.round == bob.sibling.round == missed
            swarm.hidden.clear()
            result = await carol.averager.synchronise(moved(swarm, 9.0), 4)
            assert isinstance(result, Outcome)
            assert carol.sibling.round == missed
            assert is_equal(carol, alice)
            assert torch.equal(result.state.anchor, alice.anchor)
            assert result.is_replayed is (missed <= 4)
            assert len(carol.averager.committed.kept) == (missed if missed <= 4 else 0)
            # There was no round of its own, and nobody had to wait for it.
            assert result.receipt is None
            assert not carol.averager.receipts
            assert alice.sibling.round == missed

    run_virtual(scenario())


def test_a_sibling_that_missed_rounds_and_is_waited_for_takes_part() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob", "carol"], DILOCO, Network(delay=0.01)) as (swarm, [alice, bob, carol]):
            swarm.hidden = {(node.peer, carol.peer) for node in (alice, bob)}
            await rounds(swarm, [alice, bob], 1)
            swarm.hidden.clear()

            async def late() -> None:
                await carol.averager.wait_invited()
                await carol.averager.synchronise(moved(swarm, 9.0), 4)

            await together(*(node.averager.synchronise(node.anchor + 0.5, 2) for node in (alice, bob)), late())
            assert len({node.digest for node in (alice, bob, carol)}) == 1
            assert [receipt.round for receipt in carol.averager.receipts] == [1]
            # What it had learned belonged to an older anchor.
            assert carol.averager.receipts[-1].contributors == ("alice", "bob")

    run_virtual(scenario())


def test_a_newcomer_has_what_its_siblings_have_and_weighs_its_own_samples() -> None:
    """The outer step of its first round is that of a mean weighted by what each has trained on since it began."""

    async def scenario() -> None:
        # Several chunks of state; two donors.
        async with founded(["alice", "bob"], DILOCO, Network(delay=0.01), parameters=600_000) as (swarm, nodes):
            await rounds(swarm, nodes, 2)
            async with swarm.node("carol") as carol:
                assert not carol.sibling.ready
                await carol.averager.catch_up(swarm.siblings(carol.peer))
                assert all(is_equal(carol, node) for node in nodes)
                before = carol.averager.outer
                assert before is not None
                everyone = [*nodes, carol]
                samples, learned = [6, 6, 3], [-0.1, -0.2, -0.4]
                await together(
                    *(
                        node.averager.synchronise(before.anchor + gain, count)
                        for node, gain, count in zip(everyone, learned, samples, strict=True)
                    )
                )
                assert len({node.digest for node in everyone}) == 1
                receipt = carol.averager.receipts[-1]
                assert (receipt.samples, len(receipt.contributors)) == (15, 3)
                mean = -sum(gain * count for gain, count in zip(learned, samples, strict=True)) / 15
                how = phase(2, DILOCO)
                # Where the numbers are small enough to tell.
                momentum = how.momentum * before.momentum[:500] + mean
                expected = before.anchor[:500] - how.learning_rate * (mean + how.momentum * momentum)
                assert torch.allclose(carol.anchor[:500], expected, rtol=0.0, atol=1e-3)

    run_virtual(scenario())


def test_the_donors_go_on_while_a_newcomer_takes_their_state() -> None:
    """What it gets is the state of the moment of asking, whole, although rounds are committed meanwhile."""

    async def scenario() -> None:
        network = Network(delay=0.01)
        async with founded(["alice"], DILOCO, network, parameters=600_000) as (swarm, [alice]):
            before = alice.digest
            service = alice.averager.donor.service()
            inner = service.streams[FETCH.name]

            async def fetch(stream, caller) -> None:  # type: ignore[no-untyped-def]
                await alice.averager.synchronise(moved(swarm, 1.0), 1)
                await inner(stream, caller)

            network.servers[alice.sibling.endpoint].add(
                Service(service.name, service.calls, {**service.streams, FETCH.name: fetch})
            )
            async with swarm.node("bob") as bob:
                await bob.averager.catch_up([alice.sibling])
                assert bob.digest == before != alice.digest
                # And it replays what it has missed since, at its first round.
                result = await bob.averager.synchronise(bob.anchor + 0.5, 4)
                assert result.is_replayed
                assert is_equal(bob, alice)

    run_virtual(scenario())


def test_without_a_donor_it_waits_and_says_so() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(), DILOCO)
        async with swarm.node("alice") as alice, swarm.node("bob") as bob:
            results = await together(alice.averager.catch_up([]), bob.averager.catch_up([alice.sibling]))
            assert [str(result) for result in results] == ["no donor of stage 1 (none is known)"] * 2
            assert "waiting: no donor of stage 1" in str(alice.averager.reason)
            await asyncio.sleep(0)

    run_virtual(scenario())
