"""Rounds among real processes that are killed, stopped and cut off at exact messages.

The rest commit, all the same; nobody commits two results of a round; who was lost catches up and is one of them again.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from pathlib import Path

import pytest

from bench.machines import open_machines
from tests.e2e.family import LEASE, Facts, Family, Member, open_family
from tests.namespaces import cut_one_way, heal_one_way, needs_namespaces
from tests.support import run

pytestmark = pytest.mark.e2e

NAMES = ("alice", "bob", "carol", "dave")

SLACK = 2.0
"""Seconds for noticing, and for busy processors, beside the time of two rounds."""

AS_LEADER = {"form": "Join came", "reduce": "send", "prepared": "Vote came", "commit": "Vote told"}
AS_MEMBER = {"form": "Join", "reduce": "send", "prepared": "Vote", "commit": "Vote answered"}
"""The message at which it happens."""


def victim_of(family: Family, role: str) -> Member:
    leader, *others = family.leader_first(1)
    return leader if role == "leader" else others[0]


async def begin(family: Family) -> tuple[list[Member], float]:
    """Four siblings that have committed one round without a fault, and how long that took."""
    members = await family.found(*NAMES)
    results = await family.round(*members)
    assert not any(result["failure"] for result in results)
    await family.settled(1, *members)
    return members, max(result["seconds"] for result in results)


async def fail(family: Family, victim: Member, at: str, how: str) -> list[Facts]:
    """A round in which that befalls the victim, if it comes so far; what it came to at the others."""
    victim.struck.clear()
    victim.send(trap=at, times=1 if at == "send" else 0, how=how)
    family.order(*family.members.values())
    others = [member for member in family.members.values() if member is not victim]
    results = [await family.result(member) for member in others]
    await family.until(lambda: victim.struck.is_set() or not victim.results.empty())
    return results


def check_survivors(results: list[Facts], victim: Member, phase: str) -> None:
    """They agree; the victim is in the average, or named as lost: by all who were in an attempt with it."""
    assert victim.struck.is_set()
    assert [result["failure"] for result in results] == [""] * len(results)
    assert {result["round"] for result in results} == {2}
    assert len({result["digest"] for result in results}) == 1
    receipts = [result["receipt"] for result in results]
    assert len({tuple(receipt["contributors"]) for receipt in receipts}) == 1
    assert set(receipts[0]["contributors"]) >= set(NAMES) - {victim.name}
    is_in = victim.name in receipts[0]["contributors"]
    named = [victim.name in receipt["lost"] for receipt in receipts]
    assert not any(named) if is_in else any(named) if phase == "form" else all(named)


async def check_reunion(family: Family) -> None:
    """All are in the next round, with equal digests."""
    members = list(family.members.values())
    await family.settled(2, *members)
    results = await family.round(*members)
    assert [result["failure"] for result in results] == [""] * len(members)
    assert {result["round"] for result in results} == {3}
    assert set(results[0]["receipt"]["contributors"]) == set(NAMES)
    family.check()


@pytest.mark.parametrize("role", ["member", "leader"])
@pytest.mark.parametrize("phase", list(AS_MEMBER))
def test_a_killed_sibling_costs_a_round_more_at_most(
    phase: str, role: str, maker: subprocess.Popen[str], tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with open_family(maker, tmp_path) as family:
            _, fault_free = await begin(family)
            victim = victim_of(family, role)
            at = (AS_LEADER if role == "leader" else AS_MEMBER)[phase]
            results = await fail(family, victim, at, "SIGKILL")
            check_survivors(results, victim, phase)
            assert max(result["seconds"] for result in results) < 2 * fault_free + SLACK
            await rejoin(family, victim, "SIGKILL", 2)
            await check_reunion(family)

    run(scenario(), timeout=60)


@pytest.mark.parametrize(("phase", "role"), [("reduce", "member"), ("prepared", "leader"), ("prepared", "member")])
def test_a_stopped_sibling_is_left_out_and_does_not_vote_with_its_old_state(
    phase: str, role: str, maker: subprocess.Popen[str], tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with open_family(maker, tmp_path) as family:
            await begin(family)
            victim = victim_of(family, role)
            at = (AS_LEADER if role == "leader" else AS_MEMBER)[phase]
            results = await fail(family, victim, at, "SIGSTOP")
            check_survivors(results, victim, phase)
            assert max(result["seconds"] for result in results) < LEASE + 3.0 + SLACK
            await rejoin(family, victim, "SIGSTOP", 2)
            await check_reunion(family)

    run(scenario(), timeout=90)


def cut_of(family: Family, which: str) -> tuple[str, str]:
    """From whom to whom nothing gets."""
    leader, first, second, _ = (member.name for member in family.leader_first(1))
    ways = {
        "member to member": (first, second),
        "member to leader": (first, leader),
        "leader to member": (leader, first),
    }
    return ways[which]


@pytest.mark.parametrize(
    "which",
    [
        "member to member",
        pytest.param("member to leader", marks=pytest.mark.soak),
        pytest.param("leader to member", marks=pytest.mark.soak),
    ],
)
@needs_namespaces
def test_a_one_way_cut_ends_the_round_and_leaves_no_two_results(
    which: str, maker: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The directory has all of them all the time."""

    async def scenario() -> None:
        async with open_machines(4, 1e9) as found, open_family(maker, tmp_path) as family:
            machines = dict(zip(NAMES, found, strict=True))
            members = await family.found(*NAMES, machines=machines)
            await family.round(*members)
            await family.settled(1, *members)
            source, target = (machines[name] for name in cut_of(family, which))
            cut_one_way(source, target)
            results = await family.round(*members)
            family.check()
            done = [result for result in results if not result["failure"]]
            assert len(done) >= 3
            assert {result["round"] for result in done} == {2}
            [contributors] = {tuple(result["receipt"]["contributors"]) for result in done if result["receipt"]}
            assert len(contributors) == 3  # The cut was felt.
            assert max(result["seconds"] for result in results) < 20.0
            heal_one_way(source, target)
            # Who was blamed more than once in a row is held back for some seconds.
            async with asyncio.timeout(30):
                contributors = ()
                while len(contributors) < len(NAMES):
                    results = await family.round(*members)
                    # Who has missed a round takes it instead, and has no receipt.
                    receipts = [result["receipt"] for result in results if result["receipt"]]
                    contributors = tuple(receipts[0]["contributors"]) if receipts else ()
            assert len({result["digest"] for result in results}) == 1
            family.check()

    run(scenario(), timeout=110)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_faults_one_after_the_other(seed: int, maker: subprocess.Popen[str], tmp_path: Path) -> None:
    """Whoever it is, wherever, killed or stopped: the others go on, and it is one of them again."""
    chance = random.Random(seed)

    async def scenario() -> None:
        async with open_family(maker, tmp_path) as family:
            members = await family.found(*NAMES)
            await family.round(*members)
            number, faults = 1, 0
            for _ in range(12):
                await family.settled(number, *family.members.values())
                role, phase = chance.choice(["leader", "member"]), chance.choice(list(AS_MEMBER))
                how = chance.choice(["SIGKILL", "SIGSTOP"])
                leader, *others = family.leader_first(number)
                victim = leader if role == "leader" else chance.choice(others)
                fault = f"seed {seed}, round {number}: {how} of the {role} at {phase}"
                results = await fail(family, victim, (AS_LEADER if role == "leader" else AS_MEMBER)[phase], how)
                number += 1
                assert [result["failure"] for result in results] == [""] * 3, fault
                assert {result["round"] for result in results} == {number}, fault
                family.check()
                if victim.struck.is_set():
                    faults += 1
                    await rejoin(family, victim, how, number)
                else:
                    # Another one led, so it never came to that message.
                    victim.send(trap="", times=0, how=how)
                    await family.result(victim)
                results = await family.round(*family.members.values())
                number += 1
                assert {(result["failure"], result["round"]) for result in results} == {("", number)}, fault
                family.check()
            assert faults >= 6

    run(scenario(), timeout=1000)


async def rejoin(family: Family, victim: Member, how: str, number: int) -> None:
    """It is there again, with what the others have committed."""
    others = set(NAMES) - {victim.name}
    if how == "SIGKILL":
        [again] = await family.start(victim.name)
        await family.sees(again, number, *others)
        again.send(do="catch up")
        caught = await family.result(again)
    else:
        victim.signal(signal.SIGCONT)
        await family.sees(victim, number, *others)
        caught = await family.result(victim)
        if caught["failure"]:
            # It comes to the next round with what it held, is told so, and takes what the others have.
            [caught] = await family.round(victim)
    assert (caught["failure"], caught["round"]) == ("", number)
    await family.settled(number, *family.members.values())
