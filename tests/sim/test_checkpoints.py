"""A swarm that was killed as a whole goes on from its checkpoints: with the same numbers, or with other pipelines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from distqat.roles.status import RunStatus, SwarmStatus
from tests.sim.swarm import World, open_world, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(600)]

EXACT = ("sync.codec=none", "data.adaptive=false", "train.epochs=0.8", "checkpoint.steps=10")


def books(status: SwarmStatus) -> RunStatus:
    """The run as its client sees it."""
    run = status.run()
    assert run is not None
    return run


async def start(world: World, experts: Sequence[str]) -> None:
    await world.start("head", "client")
    for host in experts:
        await world.start(host, "expert", join="head")


async def kill(world: World, hosts: Sequence[str]) -> None:
    """All at once, and without a word."""
    for host in hosts:
        await world.crash(host)
    await asyncio.sleep(30.0)


def newest(status: SwarmStatus) -> int:
    """The round of the newest checkpoint that somebody has."""
    held = [role.checkpoints for peer in status.peers for role in peer.roles if role.checkpoints is not None]
    return max((c.round for found in held for c in found.checkpoints), default=0)


async def finished(world: World) -> SwarmStatus:
    status = await world.until("head", lambda s: s.run() is not None and books(s).finished, 600, pause=1.0)
    run = books(status)
    assert (run.lost, run.doubled, run.open) == (0, 0, 0)
    assert run.committed == run.budget
    return status


def numbers(world: World, hosts: Sequence[str]) -> dict[int, list[str]]:
    """By stage, the digests of anchors and momenta."""
    found = {}
    for host in hosts:
        expert = world.peers[host].roster.get("expert")
        seat = expert.seat  # type: ignore[attr-defined]
        found[seat.stage.index] = [part.digest for part in seat.averager.outer.parts]
    return found


OVERLAPPING = {
    "blocking": (),
    "overlapping": ("sync.overlap=2", "sync.merge=0.5"),
    "eager": ("sync.overlap=2", "sync.eager=true"),
    "eager all the time": ("sync.overlap=4", "sync.eager=true"),
}
"""How rounds go: of four steps, with so many beside them."""
RARER = ("overlapping", "eager all the time")


@pytest.mark.parametrize("how", ["blocking", "eager", *(pytest.param(how, marks=pytest.mark.soak) for how in RARER)])
def test_one_pipeline_goes_on_bit_for_bit(tmp_path: Path, how: str) -> None:
    settings = (*EXACT, *OVERLAPPING[how])

    async def undisturbed() -> tuple[dict[int, list[str]], float]:
        async with open_world(tmp_path / "whole", *settings) as world:
            await start(world, ("alice", "bob"))
            status = await finished(world)
            return numbers(world, ("alice", "bob")), status.pipelines()[0].evaluation

    async def killed() -> tuple[dict[int, list[str]], float]:
        async with open_world(tmp_path / "killed", *settings) as world:
            await start(world, ("alice", "bob"))
            await world.until("head", lambda s: steps(s) > 30 and newest(s) > 0)
            await kill(world, ("head", "alice", "bob"))
            await start(world, ("alice", "bob"))
            status = await world.until("head", lambda s: bool(training(s)))
            assert steps(status) > 10
            status = await finished(world)
            return numbers(world, ("alice", "bob")), status.pipelines()[0].evaluation

    expected = run_virtual(undisturbed(), debug=False)
    assert run_virtual(killed(), debug=False) == expected


def test_a_run_of_which_all_is_booked_comes_back_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *EXACT) as world:
            await start(world, ("alice", "bob"))
            status = await world.until("head", lambda s: s.run() is not None and books(s).committed == books(s).budget)
            await kill(world, ("head", "alice", "bob"))
            await start(world, ("alice", "bob"))
            # Whatever the last checkpoint has: somebody holds it, and what it lacks is trained again.
            status = await world.until(
                "head", lambda s: rounds(s).keys() == {0, 1} and 0 not in {n for r in rounds(s).values() for n in r}
            )
            status = await finished(world)
            assert [line.phase for line in status.pipelines()] == ["finished"]

    run_virtual(scenario(), debug=False)


MANY = (*EXACT, "sync.inner_steps=3", "train.epochs=1.2")

PAIRS = (("alice", 0), ("bob", 1), ("carol", 0), ("dave", 1))


async def start_pinned(world: World, experts: Sequence[tuple[str, int]]) -> None:
    await world.start("head", "client")
    for host, stage in experts:
        await world.start(host, "expert", join="head", stage=stage)


def rounds(status: SwarmStatus) -> dict[int, set[int]]:
    """By stage, the rounds that its experts have committed."""
    found: dict[int, set[int]] = {}
    for _, expert in status.experts():
        found.setdefault(expert.stage, set()).add(expert.round)
    return found


@pytest.mark.parametrize(("before", "after"), [pytest.param(2, 2, marks=pytest.mark.soak), (2, 1), (1, 2)])
def test_the_run_goes_on_with_as_many_pipelines_as_there_are(tmp_path: Path, before: int, after: int) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *MANY) as world:
            experts = PAIRS[: 2 * before]
            await start_pinned(world, experts)
            status = await world.until("head", lambda s: len(training(s)) == before and newest(s) > 0)
            reached = newest(status)
            await kill(world, ("head", *(host for host, _ in experts)))
            # Those of one pipeline, if there are fewer.
            kept = [(seat.endpoint.host, seat.stage) for seat in training(status)[0].route]
            await start_pinned(world, kept if after < before else PAIRS)
            # Who was not in the run, or whose pipeline is not whole, comes as a newcomer.
            status = await world.until("head", lambda s: len(training(s)) == after, pause=0.05)
            assert all(number >= reached for numbers in rounds(status).values() for number in numbers)
            going_on = [line for line in training(status) if line.step >= 10]
            assert len(going_on) == min(before, after)
            status = await finished(world)
            assert len({(expert.stage, expert.digest) for _, expert in status.experts()}) == 2

    run_virtual(scenario(), debug=False)


def test_a_stage_of_which_nobody_is_there_is_waited_for_and_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *EXACT) as world:
            await start_pinned(world, PAIRS[:2])
            await world.until("head", lambda s: newest(s) > 0)
            await kill(world, ("head", "alice", "bob"))
            await start_pinned(world, PAIRS[:1])
            # A machine of its own that has nothing of the run begins nothing anew either.
            await world.start("erin", "expert", join="head", stage=1)
            why = "nobody who is here has a checkpoint of stage 1 of 2"
            await world.until("head", lambda s: any(why in r.reason for p in s.peers for r in p.roles), pause=1.0)
            await asyncio.sleep(60.0)
            assert not training(await world.status("head"))
            await world.start("bob", "expert", join="head", stage=1)
            await world.until("head", lambda s: bool(training(s)))
            await finished(world)

    run_virtual(scenario(), debug=False)


def test_a_lost_stage_comes_back_while_the_others_live(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *EXACT, "sync.max_wait=4") as world:
            await start_pinned(world, PAIRS[:2])
            status = await world.until("head", lambda s: newest(s) > 0)
            await world.crash("bob")
            await asyncio.sleep(5.0)
            await world.start("bob", "expert", join="head", stage=1)
            committed = books(status).committed
            status = await world.until("head", lambda s: bool(training(s)) and books(s).committed > committed)
            await finished(world)

    run_virtual(scenario(), debug=False)


def test_a_mirror_alone_brings_every_stage_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *EXACT) as world:
            await start_pinned(world, PAIRS)
            await world.start("safe", "mirror", join="head")
            await world.until("head", lambda s: len(mirrored(s)) == 2)
            await kill(world, ("head", "alice", "bob", "carol", "dave", "safe"))
            # All disks but that of the mirror, and that of the client with its books, are lost.
            await world.start("head", "client")
            await world.start("safe", "mirror", join="head")
            for host in ("erin", "frank"):
                await world.start(host, "expert", join="head")
            status = await world.until("head", lambda s: bool(training(s)), 120)
            assert all(number > 0 for numbers in rounds(status).values() for number in numbers)
            await finished(world)

    run_virtual(scenario(), debug=False)


def test_the_books_come_back_without_the_machine_of_the_client(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *EXACT) as world:
            await start(world, ("alice", "bob"))
            await world.until("head", lambda s: steps(s) > 30 and newest(s) > 0)
            await kill(world, ("head", "alice", "bob"))
            # Another machine, which has nothing but the config.
            await world.start("other", "client")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="other")
            await world.until("other", lambda s: bool(training(s)))
            status = await world.until("other", lambda s: s.run() is not None and books(s).finished, 600, pause=1.0)
            run = books(status)
            assert (run.committed, run.lost, run.doubled) == (run.budget, 0, 0)
            # All steps in the parameters are of samples that the books know, each once.
            assert [line.step for line in status.pipelines()] == [-(-run.budget // 16)]

    run_virtual(scenario(), debug=False)


def mirrored(status: SwarmStatus) -> set[int]:
    """Stages of which the mirror holds a checkpoint."""
    roles = [role for peer in status.peers for role in peer.roles if role.role == "mirror"]
    return {held.stage for role in roles if role.checkpoints is not None for held in role.checkpoints.checkpoints}
