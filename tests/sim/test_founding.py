"""A run that has committed a round is never begun anew: not when all its experts are lost, not when all restart."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from distqat.averaging.committed import Committed
from distqat.averaging.outer import OuterState
from distqat.roles.status import SwarmStatus
from tests.sim.swarm import World, open_world, steps, training
from tests.sim.test_swarm import books
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

WHY = "the run has committed rounds, and nobody holds mlp/"


async def started(world: World) -> SwarmStatus:
    """A run that has committed rounds in both of its stages."""
    await world.start("head", "client")
    await world.start("watch", "monitor", join="head")
    for host in ("alice", "bob"):
        await world.start(host, "expert", join="head")
    status = await world.until("head", lambda s: training(s) and all(e.round > 2 for _, e in s.experts()))
    # For the news to be everywhere.
    await asyncio.sleep(2.0)
    return status


def waiting(status: SwarmStatus) -> int:
    """Experts that say why they wait."""
    return sum(WHY in role.reason for peer in status.peers for role in peer.roles)


def test_any_daemon_of_the_run_remembers_that_it_has_committed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await started(world)
            for host in ("alice", "bob", "head"):
                await world.crash(host)
            # Every record of theirs has died; only a monitor is left of the run.
            await asyncio.sleep(60.0)
            await world.start("second", "client", join="watch")
            for host in ("carol", "dave"):
                await world.start(host, "expert", join="watch")
            await world.until("second", lambda s: waiting(s) == 2, pause=1.0)
            await asyncio.sleep(30.0)
            after = await world.status("second")
            assert waiting(after) == 2
            assert not training(after)

    run_virtual(scenario(), debug=False)


def test_after_a_restart_of_all_the_run_waits_and_another_name_begins_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        hosts = ("head", "watch", "alice", "bob")
        async with open_world(tmp_path, "checkpoint.steps=0") as world:
            await started(world)
            for host in hosts:
                await world.crash(host)
            await asyncio.sleep(60.0)
            await world.start("head", "client")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: waiting(s) == 2, pause=1.0)
            assert not training(await world.status("head"))
        async with open_world(tmp_path, "run.name=again") as world:
            await world.start("head", "client")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: training(s) and steps(s) > 10)

    run_virtual(scenario(), debug=False)


class Truths:
    """What each host holds as committed, one state after the other: (round, digest)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: dict[str, list[tuple[int, str]]] = defaultdict(list)
        move = Committed._move

        def moved(committed: Committed, state: OuterState) -> None:
            self.held[committed.context.endpoint.host].append((state.round, state.digest))
            move(committed, state)

        monkeypatch.setattr(Committed, "_move", moved)

    def have_met(self, hosts: Sequence[str]) -> bool:
        """Whether all hold the same, and have gone on with it."""
        common = set.intersection(*(set(self.held[host][1:]) for host in hosts))
        return len(common) > 3


CUT_WORLD = ("model.stages=1", "plan.max_pipelines=2", "sync.max_wait=4")
PRESUMED = 12.0
"""Seconds in that world after which a sibling that does not answer is taken for dead."""


def rounds(status: SwarmStatus) -> list[int]:
    """That the experts have committed, the fewest first; 0 while there are none."""
    return sorted(expert.round for _, expert in status.experts()) or [0]


async def start_cut_off(world: World, hosts: tuple[str, str]) -> None:
    """All see the records of all, and these two do not reach each other, before anybody trains."""
    world.network.partition({hosts[0]}, {hosts[1]})
    await world.start("watch", "monitor")
    for host in hosts:
        await world.start(host, "expert", join="watch")
    await world.until("watch", lambda s: len(s.experts()) == 2)
    await asyncio.sleep(5.0)
    await world.start("head", "client", join="watch")


def test_of_siblings_that_are_cut_off_from_the_start_one_begins_and_the_other_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        truths, hosts = Truths(monkeypatch), ("alice", "carol")
        async with open_world(tmp_path, *CUT_WORLD) as world:
            await start_cut_off(world, hosts)
            status = await world.until("head", lambda s: len(training(s)) == 2 and rounds(s)[-1] > 2)
            assert rounds(status)[0] == 0
            behind = min(line.step for line in training(status))
            await world.until("head", lambda s: min(line.step for line in training(s)) > behind)
            world.network.heal()
            status = await world.until("head", lambda s: len(training(s)) == 2 and truths.have_met(hosts), 120)
            assert (books(status).lost, books(status).doubled) == (0, 0)
        every = {state for host in hosts for state in truths.held[host]}
        assert len(every) == len({number for number, _ in every}), "there are two results of a round"

    run_virtual(scenario(), debug=False)


def test_who_waits_for_the_first_round_begins_when_the_other_is_taken_for_dead(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *CUT_WORLD) as world:
            await start_cut_off(world, ("alice", "carol"))
            await world.until("head", lambda s: rounds(s)[-1] > 0)
            began = asyncio.get_running_loop().time()
            await world.until("head", lambda s: rounds(s)[0] > 0)
            assert PRESUMED / 2 < asyncio.get_running_loop().time() - began < PRESUMED + 5.0

    run_virtual(scenario(), debug=False)


def test_siblings_that_all_are_there_begin_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *CUT_WORLD) as world:
            await world.start("head", "client")
            for host in ("alice", "carol"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: len(training(s)) == 2)
            began = asyncio.get_running_loop().time()
            await world.until("head", lambda s: rounds(s)[0] > 0)
            assert asyncio.get_running_loop().time() - began < 2.0

    run_virtual(scenario(), debug=False)


def test_siblings_that_are_cut_off_from_the_start_go_on_with_one_truth_when_they_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        truths, hosts = Truths(monkeypatch), ("alice", "carol")
        async with open_world(tmp_path, *CUT_WORLD) as world:
            # They are ready and train before the records of each have come to the other.
            world.network.partition(set(hosts[:1]), set(hosts[1:]))
            await world.start("head", "client")
            for host in hosts:
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: len(training(s)) == 2 and rounds(s)[0] > 2)
            # Fresh numbers are those of the seed, so the first round begins at the same.
            assert truths.held["alice"][0] == truths.held["carol"][0]
            assert not truths.have_met(hosts)
            world.network.heal()
            status = await world.until("head", lambda s: len(training(s)) == 2 and truths.have_met(hosts), 120)
            assert (books(status).lost, books(status).doubled) == (0, 0)
        first, second = (truths.held[host] for host in hosts)
        begun = min(set(first[1:]) & set(second[1:]))
        for held in (first, second):
            # Nobody goes back.
            assert held == sorted(held, key=lambda state: state[0])
        # From then on there are no two results of any round.
        after = {state for held in (first, second) for state in held[held.index(begun) :]}
        assert len(after) == len({number for number, _ in after})
        # The truth that goes on is that of one of them, round by round; the other's has ended.
        goes_on = [[number for number, _ in held] == list(range(len(held))) for held in (first, second)]
        assert any(goes_on)

    run_virtual(scenario(), debug=False)
