"""What befalls a round: crashes at any moment, hangs, cuts, garbage. The others commit, equally, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import torch

from distqat.averaging import attempt, messages, rendezvous
from distqat.averaging.messages import SliceHeader
from distqat.errors import DistqatError, RefusedError, RoundError, StaleError
from distqat.ids import PeerId
from distqat.rpc.local import Network
from distqat.rpc.transport import Deadline
from distqat.wire.frames import Chunk
from tests.averaging.swarm import DILOCO, PLAIN, Node, Swarm, founded, moved, together
from tests.averaging.trap import Trap
from tests.averaging.words import round_ref
from tests.support import run_virtual, until

NAMES = ["alice", "bob", "carol"]
LEADER, *OTHERS = rendezvous.order(round_ref(0), [PeerId(name) for name in NAMES])
LEASE = 3.0
"""Seconds after which the directory drops a peer that is silent."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of several chunks also for short vectors."""
    monkeypatch.setattr(attempt, "CHUNK_BYTES", 8)


@asynccontextmanager
async def trapped(swarm: Swarm) -> AsyncIterator[tuple[dict[str, Node], dict[str, Trap]]]:
    """Three founders whose network access a test can step into."""
    async with AsyncExitStack() as stack:
        traps = {name: Trap(swarm.network.transport(name)) for name in NAMES}
        nodes = {name: await stack.enter_async_context(swarm.node(name, traps[name])) for name in NAMES}
        for node in nodes.values():
            await node.averager.found(swarm.start())
        yield nodes, traps


async def crash_later(swarm: Swarm, victim: Node, when: float) -> str:
    """Let the victim die, and the directory learn of it a lease later; says what it was doing."""
    await asyncio.sleep(when)
    doing = str(victim.averager.reason)
    swarm.crash(victim)
    await asyncio.sleep(LEASE)
    victim.is_live = False
    return doing


def crash_at(when: float, victim: str) -> tuple[str, float]:
    """One round in which the victim dies at that moment: what it was doing, and when the last survivor was done."""

    async def scenario() -> tuple[str, float]:
        async with founded(NAMES, DILOCO, Network(seed=1, delay=0.01), parameters=30) as (swarm, nodes):
            loop = asyncio.get_running_loop()
            dead = swarm.nodes[PeerId(victim)]
            survivors = [node for node in nodes if node is not dead]
            async with asyncio.TaskGroup() as group:
                dying = group.create_task(together(dead.averager.synchronise(moved(swarm, 9.0), 5)))
                crash = group.create_task(crash_later(swarm, dead, when))
                results = await together(
                    *(node.averager.synchronise(moved(swarm, float(at)), at + 1) for at, node in enumerate(survivors))
                )
                ended = loop.time()
                doing = await crash
                dying.cancel()
            assert not [result for result in results if isinstance(result, DistqatError)]
            assert len({node.digest for node in survivors}) == 1
            for node in survivors:
                [receipt] = node.averager.receipts
                assert receipt.digest == node.digest
                assert {survivor.peer for survivor in survivors} <= set(receipt.contributors)
                told = {peer for peer, _ in node.lost}
                assert set(receipt.lost) <= told <= {victim}
            # Either its progress is in, or whoever missed it names it.
            lost = {peer for node in survivors for peer in node.averager.receipts[-1].lost}
            assert lost == ({victim} - set(survivors[0].averager.receipts[-1].contributors))
            return doing, ended

    return run_virtual(scenario())


@pytest.mark.parametrize("victim", [LEADER, OTHERS[0]], ids=["leader", "member"])
def test_a_crash_at_any_moment_costs_only_the_attempt(victim: str) -> None:
    """A fault-free round takes 0.08 s here. The directory learns of the death only 3 s later, which is too late."""
    seen = set()
    for when in (0.005 + 0.01 * step for step in range(9)):
        doing, ended = crash_at(when, victim)
        seen.add(doing)
        assert ended <= when + 0.5, f"a crash at {when:.3f} s ({doing}) held the others up to {ended:.1f} s"
    decision = "waiting for the votes" if victim == LEADER else "waiting for the verdict"
    for phase in ("waiting for", "exchanging", decision, "rounds committed"):
        assert any(phase in doing for doing in seen), f"{phase} not among {seen}"


@pytest.mark.parametrize("victim", [LEADER, OTHERS[0]], ids=["leader", "member"])
@pytest.mark.parametrize("phase", ["Join", "Exchange", "send", "Vote"])
def test_a_sibling_that_hangs_is_left_out_when_its_lease_ends(victim: str, phase: str) -> None:
    """Alive, but silent (SIGSTOP): no stream breaks, so the directory's word ends the wait."""
    if (victim, phase) in ((LEADER, "Join"), (LEADER, "Vote")):
        phase = "Invite"  # A leader neither joins nor votes by a call.

    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO, parameters=30)
        async with trapped(swarm) as (nodes, traps):
            dead = nodes[victim]
            survivors = [node for name, node in nodes.items() if name != victim]
            hung = asyncio.Event()

            async def hang(what: str) -> None:
                if what == phase or hung.is_set():
                    hung.set()
                    await asyncio.Event().wait()

            traps[victim].hook = hang
            async with asyncio.TaskGroup() as group:
                hanging = group.create_task(together(dead.averager.synchronise(moved(swarm, 9.0), 5)))
                work = group.create_task(
                    together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in survivors))
                )
                await hung.wait()
                # A stopped process answers nothing: whatever is sent to it hangs as well.
                swarm.network.servers[dead.averager.context.endpoint].handlers.abandon()
                await asyncio.sleep(LEASE)
                dead.is_live = False
                results = await work
                hanging.cancel()
            assert not [result for result in results if isinstance(result, DistqatError)]
            assert len({node.digest for node in survivors}) == 1
            assert {node.sibling.round for node in survivors} == {1}
            assert asyncio.get_running_loop().time() < LEASE + 1.0

    run_virtual(scenario())


def test_a_member_that_stops_in_mid_slice_is_found_without_a_directory() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), PLAIN, parameters=60)
        async with trapped(swarm) as (nodes, traps):
            count = 0

            async def stop(what: str) -> None:
                nonlocal count
                count += what == "send"
                if count > 3:
                    await asyncio.Event().wait()

            traps[OTHERS[0]].hook = stop
            results = await asyncio.wait_for(
                together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in nodes.values())), 40.0
            )
            assert isinstance(results[NAMES.index(OTHERS[0])], RoundError)
            survivors = [nodes[LEADER], nodes[OTHERS[1]]]
            assert len({node.digest for node in survivors}) == 1
            for node in survivors:
                assert node.averager.receipts[-1].lost == (OTHERS[0],)

    run_virtual(scenario())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("who", [LEADER, OTHERS[0]], ids=["leader", "member"])
def test_who_has_nothing_finite_contributes_nothing_and_is_healed(bad: float, who: str) -> None:
    async def scenario() -> None:
        async with founded(NAMES, DILOCO, Network(delay=0.01)) as (swarm, nodes):
            poison = moved(swarm, 1.0)
            poison[3] = bad
            locals_ = [poison if node.peer == who else moved(swarm, 1.0) for node in nodes]
            results = await together(
                *(node.averager.synchronise(local, 2) for node, local in zip(nodes, locals_, strict=True))
            )
            assert not [result for result in results if isinstance(result, DistqatError)]
            assert len({node.digest for node in nodes}) == 1
            assert torch.isfinite(nodes[0].anchor).all()
            for node in nodes:
                assert set(node.averager.receipts[-1].contributors) == set(NAMES) - {who}
            [(peer, reason)] = swarm.nodes[PeerId(who)].refused
            assert (peer, "NaN or infinity" in reason) == (who, True)

    run_virtual(scenario())


def test_a_cut_between_two_members_leaves_one_of_them_out() -> None:
    async def scenario() -> None:
        async with founded(NAMES, DILOCO, Network(delay=0.01)) as (swarm, nodes):
            first, second = OTHERS
            swarm.network.partition({first}, {second})
            results = await together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in nodes))
            failed = [node.peer for node, result in zip(nodes, results, strict=True) if isinstance(result, RoundError)]
            assert len(failed) == 1
            assert failed[0] in OTHERS
            assert len({node.digest for node in nodes if node.peer not in failed}) == 1
            # The one that was left out has not gone its own way.
            assert swarm.nodes[failed[0]].sibling.round == 0
            swarm.network.heal()
            await swarm.nodes[failed[0]].averager.synchronise(moved(swarm, 2.0), 1)
            assert len({node.digest for node in nodes}) == 1

    run_virtual(scenario())


def test_two_halves_go_on_and_agree_again_when_they_meet() -> None:
    """Without a majority rule both halves train on; then what most hold counts."""

    async def scenario() -> None:
        async with founded(NAMES, DILOCO, Network(delay=0.01)) as (swarm, nodes):
            alone, *both = [swarm.nodes[PeerId(name)] for name in (OTHERS[0], LEADER, OTHERS[1])]
            swarm.network.partition({alone.peer}, {node.peer for node in both})
            swarm.hidden = {(alone.peer, node.peer) for node in both} | {(node.peer, alone.peer) for node in both}
            await together(
                alone.averager.synchronise(moved(swarm, 5.0), 1),
                *(node.averager.synchronise(moved(swarm, 1.0), 1) for node in both),
            )
            assert len({node.digest for node in nodes}) == 2
            right = both[0].digest
            swarm.network.heal()
            swarm.hidden.clear()
            results = await together(*(node.averager.synchronise(node.anchor + 0.5, 1) for node in nodes))
            assert not [result for result in results if isinstance(result, DistqatError)]
            assert len({node.digest for node in nodes}) == 1
            assert {node.sibling.round for node in nodes} == {2}
            assert right != nodes[0].digest
            assert set(nodes[0].averager.receipts[-1].contributors) == {node.peer for node in both}

    run_virtual(scenario())


@pytest.mark.parametrize("blind", NAMES)
def test_a_sibling_that_sees_nobody_is_still_taken_along(blind: str) -> None:
    """Its directory is empty, but the others invite it."""

    async def scenario() -> None:
        async with founded(NAMES, DILOCO, Network(delay=0.01)) as (swarm, nodes):
            swarm.hidden = {(blind, name) for name in NAMES}

            async def late(node: Node) -> None:
                await asyncio.sleep(0.2 if node.peer == blind else 0.0)
                await node.averager.synchronise(moved(swarm, 1.0), 1)

            await together(*(late(node) for node in nodes))
            assert len({node.digest for node in nodes}) == 1
            assert {node.sibling.round for node in nodes} == {1}
            assert len(nodes[0].averager.receipts[-1].contributors) == 3

    run_virtual(scenario())


def test_the_leader_dies_between_two_verdicts() -> None:
    """One member has committed and the other has not heard: it finds what it voted for, and nothing is fetched."""

    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO)
        async with trapped(swarm) as (nodes, traps):
            leader, told, untold = nodes[LEADER], nodes[OTHERS[0]], nodes[OTHERS[1]]
            asked: list[str] = []

            async def lose_verdict(what: str) -> None:
                asked.append(what)
                if what == "Vote":
                    # Its vote gets there, the answer does not: the leader is gone by then.
                    swarm.network.partition({LEADER}, {untold.peer}, one_way=True)

            traps[untold.peer].hook = lose_verdict

            async def die() -> None:
                await until(lambda: told.sibling.round == 1)
                swarm.crash(leader)
                leader.is_live = False
                swarm.network.heal()

            results = await together(
                die(), *(node.averager.synchronise(moved(swarm, 1.0), 1) for node in (leader, told, untold))
            )
            assert not [result for result in results if isinstance(result, DistqatError)]
            assert told.digest == untold.digest
            assert untold.sibling.round == 1
            assert untold.averager.receipts[-1].contributors == tuple(sorted(NAMES))
            assert "Fetch" not in asked

    run_virtual(scenario())


def test_messages_of_an_attempt_that_is_over_are_refused() -> None:
    async def scenario() -> None:
        async with founded(["alice", "bob"]) as (swarm, [alice, bob]):
            names: list[str] = []
            exchanges = alice.averager.pursuit.exchanges
            begin = exchanges.begin
            exchanges.begin = lambda exchange: (names.append(exchange.attempt.group.attempt), begin(exchange))[1]  # type: ignore[method-assign,func-returns-value]
            await together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in (alice, bob)))
            header = SliceHeader(names[0], PeerId("bob"), "none", Chunk(0, 8))
            to = alice.averager.context.endpoint
            transport = bob.averager.context.transport
            async with transport.stream(to, messages.EXCHANGE, Deadline.after(5)) as stream:
                await stream.send(messages.frame(header, b"\0" * 8))
                with pytest.raises(StaleError, match="is over"):
                    await stream.receive()
            unknown = messages.frame(SliceHeader("never", PeerId("bob"), "none", Chunk(0, 8)), b"\0" * 8)
            async with transport.stream(to, messages.EXCHANGE, Deadline.after(5)) as stream:
                await stream.send(unknown)
                with pytest.raises(StaleError, match="is not known"):
                    await stream.receive()

    run_virtual(scenario())


def test_a_stranger_has_no_business_in_an_attempt() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(delay=0.01), DILOCO)
        async with trapped(swarm) as (nodes, traps):
            strange: list[DistqatError] = []

            async def intrude(what: str) -> None:
                traps[LEADER].hook = nothing
                [name] = nodes[LEADER].averager.pursuit.exchanges._open
                header = SliceHeader(name, PeerId("mallory"), "none", Chunk(0, 8))
                transport = swarm.network.transport("mallory")
                async with transport.stream(
                    nodes[LEADER].averager.context.endpoint, messages.EXCHANGE, Deadline.after(5)
                ) as stream:
                    await stream.send(messages.frame(header, b"\0" * 8))
                    try:
                        await stream.receive()
                    except RefusedError as error:
                        strange.append(error)

            async def nothing(what: str) -> None: ...

            async def at_exchange(what: str) -> None:
                if what == "Exchange":
                    await intrude(what)

            traps[LEADER].hook = at_exchange
            await together(*(node.averager.synchronise(moved(swarm, 1.0), 1) for node in nodes.values()))
            assert "no business" in strange[0].reason
            assert len({node.digest for node in nodes.values()}) == 1

    run_virtual(scenario())
