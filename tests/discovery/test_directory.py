"""Who serves what now, as roles see it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from distqat.discovery import keys
from distqat.discovery.directory import Directory
from distqat.discovery.messages import encode_record
from distqat.discovery.node import DhtNode
from distqat.discovery.records import ClientRecord, ConfigRecord, ExpertRecord, PeerRecord, TrainerRecord
from distqat.errors import RecordError
from distqat.ids import PipelineId, RunId, StageIndex
from distqat.rpc.local import Network
from distqat.rpc.transport import Deadline
from tests.discovery.helpers import a_node, address
from tests.support import run_virtual, until

RUN, OTHER_RUN = RunId("digits", "d" * 32), RunId("digits", "e" * 32)


@asynccontextmanager
async def directories(count: int, run: RunId | None = RUN) -> AsyncIterator[tuple[list[DhtNode], list[Directory]]]:
    """So many daemons of one swarm, each with its directory."""
    network = Network(1, delay=0.005)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(a_node(network, number, [0] if number else [])) for number in range(count)
        ]
        opened = [await stack.enter_async_context(Directory.open(node, run)) for node in nodes]
        for node in nodes[1:]:
            await node.wait_joined()
        yield nodes, opened


def test_what_one_announces_is_seen_at_home_at_once_and_elsewhere_soon() -> None:
    async def scenario() -> None:
        async with directories(2) as (nodes, (here, there)):
            record = ExpertRecord(address(0), reason="waiting for a seat")
            here.announce(record)
            assert here.snapshot().experts[nodes[0].peer].record == record
            snapshot = await there.wait_changed(there.snapshot().version, Deadline.after(1))
            assert snapshot.experts[nodes[0].peer].record == record
            assert snapshot.experts[nodes[0].peer].sequence > 0
            assert repr(there).startswith(f"<Directory <Snapshot {snapshot.version} of digits@dddddddd: 0 peers, 1 exp")

    run_virtual(scenario())


def test_every_kind_has_its_section() -> None:
    async def scenario() -> None:
        async with directories(2) as (nodes, (here, there)):
            author = nodes[0].peer
            expert = ExpertRecord(address(0), True, StageIndex(1), True, 5, 2, "d", False, "training")
            trainer = TrainerRecord(address(0), (PipelineId("p"),), 5, "training")
            peer, client = PeerRecord(address(0), ("expert",), RUN, "1"), ClientRecord(address(0), True, "planning")
            config = ConfigRecord(RUN, address(0))
            for record in (expert, trainer, peer, client, config):
                here.announce(record)
            await until(lambda: there.snapshot().records() == here.snapshot().records())
            snapshot = there.snapshot()
            assert snapshot.experts[author].record == expert
            assert snapshot.trainers[author].record == trainer
            assert snapshot.peers[author].record == peer
            assert snapshot.clients[author].record == client
            assert snapshot.configs[author].record == config

    run_virtual(scenario())


def test_a_joiner_finds_the_run_with_an_address_only() -> None:
    async def scenario() -> None:
        async with directories(2, run=None) as (_nodes, (here, there)):
            with pytest.raises(RecordError, match="ExpertRecord belongs to a run, and none is chosen"):
                here.announce(ExpertRecord(address(0)))
            here.use_run(RUN)
            here.announce(ConfigRecord(RUN, address(0)))
            here.announce(ExpertRecord(address(0)))
            await until(lambda: there.snapshot().configs)
            (entry,) = there.snapshot().configs.values()
            assert entry.record.run == RUN
            assert not there.snapshot().experts
            there.use_run(entry.record.run)
            assert there.run == RUN
            await until(lambda: there.snapshot().experts and there.snapshot().configs)

    run_virtual(scenario())


def test_runs_are_kept_apart() -> None:
    async def scenario() -> None:
        async with directories(2) as (nodes, (here, there)):
            here.announce(ExpertRecord(address(0)))
            await until(lambda: there.snapshot().experts)
            there.use_run(OTHER_RUN)
            assert not there.snapshot().experts
            await asyncio.sleep(5)
            assert not there.snapshot().experts
            here.use_run(OTHER_RUN)
            assert not here.snapshot().experts, "what was said belonged to the former run"
            here.announce(ExpertRecord(address(0), reason="new"))
            await until(lambda: there.snapshot().experts)
            old_key = keys.experts(RUN, keys.expert_shard(nodes[0].peer))
            await until(lambda: not nodes[1].held(old_key))

    run_virtual(scenario())


def test_announcements_are_throttled_and_the_latest_counts() -> None:
    async def scenario() -> None:
        async with directories(2) as (nodes, (here, there)):
            heard: list[str] = []
            nodes[1].watch(heard.append)
            for step in range(100):
                here.announce(ExpertRecord(address(0), step=step))
                await asyncio.sleep(0.05)
            await asyncio.sleep(1.1)
            assert there.snapshot().experts[nodes[0].peer].record.step == 99
            assert 4 <= len(heard) <= 8, "progress goes out about once a second"
            heard.clear()
            for stage in range(20):
                here.announce(ExpertRecord(address(0), seated=True, stage=StageIndex(stage)))
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
            assert there.snapshot().experts[nodes[0].peer].record.stage == 19
            assert 4 <= len(heard) <= 8, "another seat goes out about five times a second"

    run_virtual(scenario())


def test_a_withdrawn_record_is_gone() -> None:
    async def scenario() -> None:
        async with directories(2) as (_nodes, (here, there)):
            here.announce(ClientRecord(address(0)))
            here.announce(ExpertRecord(address(0)))
            await until(lambda: there.snapshot().clients and there.snapshot().experts)
            here.withdraw(ClientRecord)
            assert not here.snapshot().clients
            await until(lambda: not there.snapshot().clients, timeout=1)
            assert there.snapshot().experts

    run_virtual(scenario())


def test_waiting_ends_with_a_change_or_with_the_deadline() -> None:
    async def scenario() -> None:
        async with directories(2) as (_nodes, (here, _)):
            loop = asyncio.get_running_loop()
            version, began = here.snapshot().version, loop.time()
            assert (await here.wait_changed(version, Deadline.after(3))).version == version
            assert loop.time() - began == pytest.approx(3)
            here.announce(ClientRecord(address(0)))
            assert (await here.wait_changed(version, Deadline.after(3))).version == version + 1
            here.announce(ClientRecord(address(0)))
            await asyncio.sleep(30)
            assert here.snapshot().version == version + 1, "saying the same again is no change"

    run_virtual(scenario())


def test_a_crashed_peer_is_out_after_its_time_to_live() -> None:
    async def scenario() -> None:
        network = Network(1)
        async with (
            a_node(network, 0) as node,
            a_node(network, 1, [0]) as other,
            Directory.open(node, RUN) as here,
            Directory.open(other, RUN, ttl=6) as there,
        ):
            there.announce(ExpertRecord(address(1)))
            await until(lambda: here.snapshot().experts)
            await asyncio.sleep(20)
            assert here.snapshot().experts
            network.crash("host1")
            await until(lambda: not here.snapshot().experts, timeout=8)

    run_virtual(scenario())


def test_a_lost_peer_is_out_at_once_and_back_when_it_signs_again() -> None:
    async def scenario() -> None:
        async with directories(2) as (nodes, (here, there)):
            there.announce(ExpertRecord(address(1)))
            await until(lambda: here.snapshot().experts)
            await asyncio.sleep(2)
            here.mark_lost(nodes[1].peer, "stage 1 does not answer")
            assert not here.snapshot().experts
            assert here.snapshot().lost == {nodes[1].peer: "stage 1 does not answer"}
            await asyncio.sleep(2)
            assert not here.snapshot().experts, "its old record does not bring it back"
            there.announce(ExpertRecord(address(1), reason="back"))
            await until(lambda: here.snapshot().experts)
            assert not here.snapshot().lost

    run_virtual(scenario())


def test_garbage_and_records_of_another_run_are_passed_over() -> None:
    async def scenario() -> None:
        async with directories(2) as (nodes, (here, there)):
            await nodes[1].publish(keys.clients(RUN), b"\xff\xff", ttl=10)
            await nodes[1].publish(keys.config(RUN), encode_record(ConfigRecord(OTHER_RUN, address(1))), ttl=10)
            there.announce(ExpertRecord(address(1)))
            await until(lambda: here.snapshot().experts)
            assert not here.snapshot().clients
            assert not here.snapshot().configs

    run_virtual(scenario())


def test_looking_is_seldom_while_nothing_changes() -> None:
    async def scenario() -> None:
        async with directories(2) as (nodes, (here, there)):
            here.announce(PeerRecord(address(0)))
            await asyncio.sleep(60)
            lookups = 0
            original = nodes[1].lookup

            async def counting(key: str) -> object:
                nonlocal lookups
                lookups += key == keys.PEERS
                return await original(key)

            nodes[1].lookup = counting  # type: ignore[method-assign, assignment]
            await asyncio.sleep(40)
            assert 8 <= lookups <= 12
            there.look_now()
            await asyncio.sleep(0.1)
            assert 9 <= lookups <= 13

    run_virtual(scenario())


def test_discovery_needs_no_torch() -> None:
    code = "import sys, distqat.discovery.directory; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
