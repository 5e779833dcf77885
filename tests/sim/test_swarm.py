"""The roles together, in virtual time: forming, mending, regrouping, standing by, finishing."""

from __future__ import annotations

from pathlib import Path

import pytest

from distqat.roles.status import RunStatus, SwarmStatus
from tests.sim.swarm import open_world, peer_of, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]


def expert_digests(status: SwarmStatus) -> dict[tuple[int, int], set[str]]:
    """By stage and round, the digests that were seen in receipts."""
    seen: dict[tuple[int, int], set[str]] = {}
    for _, expert in status.experts():
        for receipt in expert.receipts:
            seen.setdefault((expert.stage, receipt.round), set()).add(receipt.digest)
    return seen


def books(status: SwarmStatus) -> RunStatus:
    """The run as its client sees it."""
    run = status.run()
    assert run is not None
    return run


def test_a_run_is_trained_to_its_end_and_all_siblings_agree(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=2") as world:
            await world.start("head", "client", "monitor")
            for host in ("alice", "bob", "carol", "dave"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: len(training(s)) == 2)
            status = await world.until("head", lambda s: books(s).finished, 300)
            run = books(status)
            assert run.committed == run.budget
            assert (run.lost, run.doubled, run.open) == (0, 0, 0)
            final = [(e.stage, e.round, e.digest) for _, e in status.experts()]
            assert len(final) == 4
            assert len(set(final)) == 2
            assert all(len(digests) == 1 for digests in expert_digests(status).values())
            evaluations = {line.evaluation for line in status.pipelines()}
            assert len(evaluations) == 1
        lines = (tmp_path / "logs" / "sim" / "initial_peers.txt").read_text().split()
        assert len(lines) == 5

    run_virtual(scenario(), debug=False)


def test_a_crashed_expert_is_replaced_by_a_spare_with_the_siblings_state(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client")
            for host in ("alice", "bob", "carol", "dave", "spare"):
                await world.start(host, join="head")
            before = await world.until("head", lambda s: len(training(s)) == 2 and steps(s) > 20)
            victim = next(peer for peer, e in before.experts() if e.seated and e.stage == 1)
            await world.crash(victim.endpoint.host)
            after = await world.until(
                "head", lambda s: len(training(s)) == 2 and all(peer.peer != victim.peer for peer, _ in s.experts())
            )
            run = books(after)
            assert [loss.peer for loss in run.losses] == [victim.peer]
            later = await world.until("head", lambda s: steps(s) > steps(after) + 20)
            assert all(len(digests) == 1 for digests in expert_digests(later).values())
            assert (books(later).lost, books(later).doubled) == (0, 0)

    run_virtual(scenario(), debug=False)


def test_two_broken_pipelines_become_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client")
            for host, stage in (("a0", 0), ("a1", 1), ("b0", 0), ("b1", 1)):
                await world.start(host, "expert", join="head", stage=stage)
            await world.until("head", lambda s: len(training(s)) == 2 and steps(s) > 10)
            await world.crash("a0")
            await world.crash("b1")
            whole = await world.until("head", lambda s: len(s.pipelines()) == 1 and len(training(s)) == 1)
            (line,) = whole.pipelines()
            assert [seat.endpoint.host for seat in line.route] == ["b0", "a1"]
            await world.until("head", lambda s: steps(s) > steps(whole) + 10)

    run_virtual(scenario(), debug=False)


def test_a_second_client_stands_by_and_takes_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            # First, or the client's daemon would take the role itself, and the pipeline die with it.
            await world.start("helper", "trainer")
            await world.start("head", "client", join="helper")
            # Of two that begin at once either may stay.
            await world.until("head", lambda s: s.run() and books(s).budget)
            await world.start("second", "client", join="head")
            await world.until("second", lambda s: "standing by" in str(s))
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="helper")
            await world.until("second", lambda s: training(s) and steps(s) > 10)
            standing = await world.until("second", lambda s: "standing by" in peer_of(s, "second").roles[0].reason)
            assert peer_of(standing, "head").roles[0].phase == "training"
            name = training(standing)[0].pipeline
            await world.crash("head")
            taken = await world.until(
                "second", lambda s: peer_of(s, "second").roles[0].phase == "training" and training(s), 120
            )
            # The trainer lives on, so its pipeline does; and the books go on where the last copy was.
            later = await world.until("second", lambda s: steps(s) > steps(taken) + 10)
            assert [line.pipeline for line in later.pipelines()] == [name]
            assert books(later).committed > 0
            later = await world.until("second", lambda s: books(s).committed > books(standing).committed)
            assert books(later).lost == 0

    run_virtual(scenario(), debug=False)


def test_a_client_that_comes_back_adopts_what_it_finds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=3") as world:
            await world.start("helper", "trainer")
            await world.start("head", "client", join="helper")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            known = tmp_path / "head" / "peer-0" / "known_peers.json"
            before = await world.until("head", lambda s: training(s) and books(s).committed > 200 and known.exists())
            name = training(before)[0].pipeline
            await world.crash("head")
            # Without an address: it knows its peers from before.
            await world.start("head", "client")
            back = await world.until("head", lambda s: s.run() and books(s).committed > books(before).committed, 120)
            assert [line.pipeline for line in training(back)] == [name]
            done = await world.until("head", lambda s: books(s).finished, 300, pause=1.0)
            assert (books(done).committed, books(done).lost, books(done).doubled) == (books(done).budget, 0, 0)

    run_virtual(scenario(), debug=False)


def test_a_joiner_waits_and_says_why_until_there_is_a_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("first")
            alone = await world.until("first", lambda s: "alone" in peer_of(s, "first").reason)
            assert not training(alone)
            await world.start("second", join="first")
            await world.until("first", lambda s: "knows a run yet" in peer_of(s, "first").reason)
            await world.start("head", "client", join="first")
            await world.until("head", lambda s: training(s) and steps(s) > 5)

    run_virtual(scenario(), debug=False)


def test_a_drained_expert_hands_its_seat_over_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client")
            for host in ("alice", "bob", "carol", "dave", "spare"):
                await world.start(host, join="head")
            before = await world.until("head", lambda s: len(training(s)) == 2 and steps(s) > 20)
            leaver = next(peer for peer, e in before.experts() if e.seated)
            await world.stop(leaver.endpoint.host)
            after = await world.until(
                "head", lambda s: len(training(s)) == 2 and all(p.peer != leaver.peer for p in s.peers)
            )
            assert (books(after).lost, books(after).doubled) == (0, 0)

    run_virtual(scenario(), debug=False)
