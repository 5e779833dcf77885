"""Whole daemons whose rounds run beside their steps: to the end, and past experts that leave or crash meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from distqat.roles.status import SwarmStatus
from tests.sim.swarm import open_world, steps, training
from tests.sim.test_swarm import books, expert_digests
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

BESIDE = ("sync.inner_steps=8", "sync.fragments=2", "sync.overlap=2", "data.adaptive=false")


def host_of(status: SwarmStatus, stage: int) -> str:
    """Of an expert of that stage."""
    return next(peer.endpoint.host for peer, expert in status.experts() if expert.seated and expert.stage == stage)


@pytest.mark.parametrize("more", [("sync.merge=0.5",), ("sync.eager=true", "sync.overlap=4")], ids=["merged", "eager"])
def test_all_siblings_end_alike(tmp_path: Path, more: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=1", *BESIDE, *more) as world:
            await world.start("head", "client")
            for host in ("alice", "bob", "carol", "dave"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: len(training(s)) == 2)
            await world.until("head", lambda s: any(expert.beside for _, expert in s.experts()), pause=0.005)
            status = await world.until("head", lambda s: books(s).finished, 300)
            run = books(status)
            assert (run.committed, run.lost, run.doubled, run.open) == (run.budget, 0, 0, 0)
            assert len({(e.stage, e.round, e.digest) for _, e in status.experts()}) == 2
            assert all(len(digests) == 1 for digests in expert_digests(status).values())
            fragments = {receipt.fragments for _, e in status.experts() for receipt in e.receipts}
            assert fragments == {(0,), (1,)}

    run_virtual(scenario(), debug=False)


def test_experts_that_leave_and_crash_beside_a_round(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "plan.max_pipelines=2", *BESIDE) as world:
            await world.start("head", "client")
            for host in ("alice", "bob", "carol", "dave", "erin", "frank"):
                await world.start(host, join="head")
            before = await world.until("head", lambda s: len(training(s)) == 2 and steps(s) > 40)
            await world.stop(host_of(before, 0))
            drained = await world.until("head", lambda s: len(training(s)) == 2 and steps(s) > steps(before) + 40)
            assert not books(drained).losses
            await world.crash(host_of(drained, 1))
            after = await world.until("head", lambda s: len(training(s)) == 2 and bool(books(s).losses))
            later = await world.until("head", lambda s: steps(s) > steps(after) + 40)
            assert (books(later).lost, books(later).doubled) == (0, 0)
            assert all(len(digests) == 1 for digests in expert_digests(later).values())
            newest = max(expert.round for _, expert in later.experts())
            assert newest > max(expert.round for _, expert in drained.experts())

    run_virtual(scenario(), debug=False)
