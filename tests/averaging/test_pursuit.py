"""Rounds when siblings leave, die, are cut off, or bring what cannot be taken; and all parts together."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from distqat.averaging import messages, rendezvous
from distqat.averaging.averager import Averager
from distqat.averaging.events import Averaged, Broken
from distqat.averaging.group import Join
from distqat.averaging.outer import OuterState
from distqat.errors import DistqatError, RefusedError, RoundError, TensorError
from distqat.ids import PeerId
from distqat.rpc.local import Network
from distqat.rpc.transport import Deadline
from distqat.rpc.virtual import VirtualTimeLoop
from distqat.sections import SyncSection
from tests.averaging.swarm import DILOCO, Node, Swarm, founded, moved, together
from tests.averaging.words import join, round_ref
from tests.support import run_virtual, until

NAMES = ["alice", "bob", "carol"]
FIRST, SECOND = rendezvous.order(round_ref(1), [PeerId("alice"), PeerId("bob")])
"""Of two siblings in their second round."""


async def synchronise(*nodes: Node, by: float = 1.0) -> list[Any]:
    return await together(*(node.averager.synchronise(node.anchor + by, 1) for node in nodes))


def digests(nodes: list[Node]) -> set[str]:
    return {node.digest for node in nodes}


@pytest.mark.parametrize("codec", ["none", "bf16", "int8", "int4", "int2"])
def test_fragments_codecs_and_feedback_together(codec: str) -> None:
    sync = SyncSection(warmup_steps=2, inner_steps=6, fragments=3, codec=codec, max_wait=4.0)

    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.005), sync, parameters=600, buffers=6)
        swarm.fragments = 3
        async with swarm.node("alice") as alice, swarm.node("bob") as bob, swarm.node("carol") as carol:
            nodes = [alice, bob, carol]
            for node in nodes:
                await node.averager.found(swarm.start())
            draw = torch.Generator().manual_seed(5)
            for number in range(8):
                how = alice.averager.phase
                assert how is not None
                works = []
                for node in nodes:
                    local = node.anchor + torch.randn(606, generator=draw)
                    parts = torch.cat([swarm.pieces(local)[index] for index in how.fragments])
                    works.append(node.averager.synchronise(parts, 4))
                results = await together(*works)
                assert not [result for result in results if isinstance(result, DistqatError)]
                assert len(digests(nodes)) == 1
                receipt = alice.averager.receipts[-1]
                assert receipt.fragments == ((0, 1, 2) if number < 2 else ((number - 2) % 3,))
                # Whole parameters are not rounded to four bits or two.
                assert receipt.codec == (codec if number >= 2 or codec not in ("int4", "int2") else "int8")
                steps = 1 if number < 2 else 6
                parameters = 600 if number < 2 else 200
                assert receipt.bits == pytest.approx(8 * receipt.bytes / (parameters * steps))
            assert any(node.averager.committed.feedback.save() for node in nodes) == (codec == "int2")
            assert len(alice.averager.committed.kept) == sync.kept_rounds

    run_virtual(scenario())


def test_one_of_two_dies_and_the_other_goes_on_at_once() -> None:
    """Nobody listens at its address any more, so nobody can be further."""

    async def scenario() -> None:
        async with founded(["alice", "bob"], DILOCO, Network(delay=0.01)) as (swarm, [alice, bob]):
            await synchronise(alice, bob)
            for node in (alice, bob):
                if node.peer == FIRST:
                    swarm.crash(node)
                    break
            [other] = [node for node in (alice, bob) if not node.has_crashed]
            loop = asyncio.get_running_loop()
            began = loop.time()
            await other.averager.synchronise(other.anchor + 1.0, 1)
            assert loop.time() - began < 0.2
            assert other.sibling.round == 2

    run_virtual(scenario())


def test_one_of_two_that_is_cut_off_waits_until_the_other_must_be_dead() -> None:
    """The other is the first in the order, so it goes on."""

    async def scenario() -> None:
        async with founded(["alice", "bob"], DILOCO, Network(delay=0.01)) as (swarm, nodes):
            await synchronise(*nodes)
            first, second = (swarm.nodes[peer] for peer in (FIRST, SECOND))
            swarm.network.partition({FIRST}, {SECOND})
            swarm.hidden = {(FIRST, SECOND), (SECOND, FIRST)}
            local = second.anchor + 1.0
            with pytest.raises(RoundError, match=r"1 of 2 siblings cannot be reached .* waiting 12 s before they are"):
                await second.averager.synchronise(local, 1)
            assert second.sibling.round == 1
            await first.averager.synchronise(first.anchor + 1.0, 1)
            assert first.sibling.round == 2
            await asyncio.sleep(second.averager.context.waits.presumed)
            await second.averager.synchronise(local, 1)
            assert second.sibling.round == 2, "a cut that lasts longer parts the run"
            # The one that is further is right when they meet.
            await first.averager.synchronise(first.anchor + 1.0, 1)
            swarm.network.heal()
            swarm.hidden.clear()
            await synchronise(*nodes)
            await synchronise(*nodes)
            assert len(digests(nodes)) == 1
            assert second.sibling.round > 2

    run_virtual(scenario())


def test_who_has_stood_still_decides_nothing_by_the_time_that_went_by() -> None:
    """The other one may have gone on without it; before it has heard of that it must not commit alone."""

    async def scenario() -> None:
        network = Network(delay=0.005)
        swarm = Swarm(network, DILOCO)
        async with swarm.node("alice") as alice, swarm.node("bob") as bob:
            nodes = {node.peer: node for node in (alice, bob)}
            for node in nodes.values():
                await node.averager.found(swarm.start())
            await synchronise(alice, bob)
            first, loop = nodes[FIRST], asyncio.get_running_loop()
            assert isinstance(loop, VirtualTimeLoop)
            network.partition({FIRST}, {SECOND})
            trying = asyncio.ensure_future(first.averager.synchronise(first.anchor + 1.0, 1))
            await asyncio.sleep(0.1)
            # As if it had been stopped: nothing of it has run meanwhile.
            loop.stand_still(2 * first.averager.context.waits.presumed)
            with pytest.raises(RoundError, match="stood still for"):
                await trying
            network.heal()
            await synchronise(alice, bob)
            assert {node.sibling.round for node in nodes.values()} == {2}
            assert len(digests([alice, bob])) == 1

    run_virtual(scenario())


def test_what_is_committed_by_who_has_stood_still_is_not_forgotten() -> None:
    """Its state moves in the very moment in which it notices."""

    async def scenario() -> None:
        network = Network(delay=0.005)
        async with founded(["alice", "bob"], DILOCO, network) as (swarm, nodes):
            await synchronise(*nodes)
            first, loop = swarm.nodes[FIRST], asyncio.get_running_loop()
            assert isinstance(loop, VirtualTimeLoop)
            network.partition({FIRST}, {SECOND})
            trying = asyncio.ensure_future(first.averager.synchronise(first.anchor + 1.0, 1))
            await asyncio.sleep(0.1)
            loop.stand_still(10.0)
            pursuit, before = first.averager.pursuit, first.averager.pursuit.outer
            pursuit.committed.adopt(OuterState.of(before.parts, before.round + 1, before.members, before.cut))
            assert (await trying).state.round == before.round + 1
            assert pursuit.round.round.number == pursuit.outer.round == before.round + 1

    run_virtual(scenario())


def test_who_says_farewell_is_not_waited_for() -> None:
    """It cannot be reached afterwards, and that is no matter."""

    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO)
        async with swarm.node(SECOND) as second:
            async with swarm.node(FIRST) as first:
                for node in (first, second):
                    await node.averager.found(swarm.start())
                await synchronise(first, second)
            swarm.network.partition({FIRST}, {SECOND})
            await second.averager.synchronise(second.anchor + 1.0, 1)
            assert second.sibling.round == 2

    run_virtual(scenario())


def test_a_sibling_that_cannot_get_the_average_takes_it_from_those_who_have_it() -> None:
    """Its contribution is in it: the round is its own, and nothing of it is learned twice."""

    async def scenario() -> None:
        async with founded(NAMES, DILOCO, Network(delay=0.01)) as (swarm, nodes):
            await synchronise(*nodes)
            _, _, last = (swarm.nodes[peer] for peer in rendezvous.order(round_ref(1), swarm.nodes))
            average = last.averager.pursuit._average

            async def lose(group: Any) -> Any:
                event = await average(group)
                return Broken("the last chunk was lost") if isinstance(event, Averaged) else event

            last.averager.pursuit._average = lose  # type: ignore[method-assign]
            results = await synchronise(*nodes, by=2.0)
            assert not [result for result in results if isinstance(result, DistqatError)]
            assert len(digests(nodes)) == 1
            outcome = results[nodes.index(last)]
            assert outcome.receipt is not None
            assert set(outcome.receipt.contributors) == set(NAMES)
            assert not outcome.is_replayed
            # It was in the group, so it decides about the next round with the others.
            assert last.averager.pursuit.round.has_voice

    run_virtual(scenario())


def test_who_missed_a_round_replays_it_and_may_carry_its_progress_over() -> None:
    async def scenario() -> None:
        async with founded(NAMES, DILOCO, Network(delay=0.01)) as (swarm, nodes):
            await synchronise(*nodes)
            late = nodes[2]
            late.is_live = False
            swarm.hidden = {(late.peer, name) for name in NAMES}
            await synchronise(*nodes[:2])
            late.is_live = True
            swarm.hidden.clear()
            outcome = await late.averager.synchronise(late.anchor + 1.0, 1)
            assert outcome.is_replayed
            assert outcome.receipt is None
            assert len(digests(nodes)) == 1
            assert not late.averager.pursuit.round.has_voice

    run_virtual(scenario())


def liar(node: Node, monkeypatch: pytest.MonkeyPatch, norm: float) -> None:
    """It says that its contribution is so much longer or shorter than it is."""
    honest = node.averager._contribute

    async def lie(*arguments: Any) -> Join:
        told = await honest(*arguments)
        return replace(told, norm=told.norm * norm)

    monkeypatch.setattr(node.averager, "_contribute", lie)


def test_a_contribution_that_is_longer_than_it_said_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The round goes on without it at once, and its sender is held back longer and longer."""

    async def scenario() -> None:
        async with founded(NAMES, DILOCO, Network(delay=0.01)) as (_swarm, nodes):
            mallory = nodes[2]
            liar(mallory, monkeypatch, 0.01)
            reasons = []
            for _ in range(4):
                results = await synchronise(*nodes)
                assert not [result for result in results if isinstance(result, DistqatError)]
                assert len(digests(nodes)) == 1
                for node in nodes:
                    receipt = node.averager.receipts[-1]
                    assert mallory.peer not in receipt.contributors
                    assert {"alice", "bob"} == set(receipt.contributors)
                [(peer, reason)] = {refused for node in nodes for refused in node.averager.receipts[-1].refused}
                assert peer == mallory.peer
                reasons.append(reason)
            assert "held back" not in reasons[0]
            assert any("held back for" in reason for reason in reasons)
            assert any(peer == mallory.peer for node in nodes[:2] for peer, _ in node.refused)

    run_virtual(scenario())


def test_a_contribution_beyond_the_median_is_scaled_down() -> None:
    async def scenario() -> None:
        sync = DILOCO.model_copy(update={"clip": 2.0})
        async with founded(NAMES, sync, Network(delay=0.01)) as (swarm, nodes):
            by = {"alice": 1.0, "bob": 1.0, "carol": 100.0}
            await together(*(node.averager.synchronise(moved(swarm, by[node.peer]), 1) for node in nodes))
            receipt = nodes[0].averager.receipts[-1]
            assert receipt.clipped == ("carol",)
            # A mean of 1, 1 and 2 instead of 1, 1 and 100, with its momentum.
            step = (1.0 + 1.0 + 2.0) / 3 * sync.outer_learning_rate * (1 + sync.outer_momentum)
            assert torch.allclose(nodes[0].anchor[:8], swarm.start()[:8] + step, atol=1e-4)

    run_virtual(scenario())


def test_the_same_call_twice_is_one_sibling_and_later_it_is_refused() -> None:
    async def scenario() -> None:
        async with founded(["alice"], DILOCO, Network(delay=0.01)) as (swarm, [alice]):
            context = alice.averager.context
            request = messages.encode(replace(join("bob", digest=alice.digest), call="once"))

            async def ask() -> bytes:
                return await context.transport.call(context.endpoint, messages.JOIN, request, Deadline.after(60))

            async def train() -> None:
                await until(lambda: alice.averager.pursuit.round.has_guests)
                await alice.averager.synchronise(moved(swarm, 1.0), 1)

            first, second, _ = await together(ask(), ask(), train())
            assert first == second
            assert len(alice.averager.receipts[-1].contributors) == 1, "bob is not there after all"
            with pytest.raises(RefusedError, match="has had its answer"):
                await ask()

    run_virtual(scenario())


@pytest.mark.parametrize("changes", [{"norm": float("nan")}, {"norm": -1.0}, {"codec": "gif"}])
def test_nonsense_is_refused_with_a_reason_and_reported(changes: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with founded(["alice"], DILOCO) as (_swarm, [alice]):
            context = alice.averager.context
            request = messages.encode(replace(join("bob"), **changes))
            with pytest.raises(TensorError, match="bob joins with"):
                await context.transport.call(context.endpoint, messages.JOIN, request, Deadline.after(60))
            assert [peer for peer, _ in alice.refused] == ["bob"]
            assert not alice.averager.pursuit.round.has_guests

    run_virtual(scenario())


def test_an_averager_without_state_leaves_without_a_word() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(), DILOCO)
        async with swarm.node("alice") as alice:
            assert isinstance(alice.averager, Averager)
            assert "without state" in repr(alice.averager)

    run_virtual(scenario())
