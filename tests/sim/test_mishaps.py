"""What goes wrong between roles, in virtual time: books that are away, orders that are late, drains that meet work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from distqat.errors import DataError, DeadlineError
from distqat.ids import Endpoint, PipelineId, Seat, StageIndex, StepRef
from distqat.roles.orders.order import Order
from distqat.roles.remote import Remote
from distqat.roles.seat import Seat as HeldSeat
from distqat.roles.status import PeerStatus, PipelineStatus, SwarmStatus
from distqat.roles.trainer import Trainer
from tests.sim.swarm import PORT, World, open_world, peer_of, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]


async def start_pair(world: World, *head_roles: str) -> SwarmStatus:
    """A head and two experts that train."""
    await world.start("head", *head_roles)
    for host in ("alice", "bob"):
        await world.start(host, "expert", join="head")
    return await world.until("head", lambda s: training(s) and steps(s) > 10)


def remote(world: World, host: str) -> Remote:
    """The daemon on that host."""
    return Remote(world.network.transport("observer"), Endpoint(host, PORT), seconds=60.0)


def test_a_daemon_that_is_client_and_trainer_drains_at_once_and_books_its_last_steps(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await start_pair(world, "client", "trainer")
            loop = asyncio.get_running_loop()
            began = loop.time()
            await world.stop("head")
            assert loop.time() - began < 10.0

    run_virtual(scenario(), debug=False)


def test_a_route_that_breaks_while_the_books_are_away_opens_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("helper", "trainer")
            await world.start("head", "client", join="helper")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="helper")
            await world.until("head", lambda s: training(s) and steps(s) > 10)
            known = tmp_path / "head" / "peer-0" / "known_peers.json"
            await world.until("head", lambda s: known.exists())
            await world.crash("head")
            await asyncio.sleep(2.0)
            away = await world.status("helper")
            # Steps go on for as long as samples are claimed; that they are committed is not in the books yet.
            world.network.partition({"alice"}, {"bob"})
            await asyncio.sleep(1.0)
            world.network.heal()
            await world.until("helper", lambda s: training(s))
            await world.start("head", "client", join="helper")
            later = await world.until("helper", lambda s: training(s) and steps(s) > steps(away) + 20)
            run = (await world.status("head")).run()
            assert run is not None
            assert (run.lost, run.doubled) == (0, 0)
            assert [line.pipeline for line in later.pipelines()] == [away.pipelines()[0].pipeline]

    run_virtual(scenario(), debug=False)


def test_a_pipeline_that_was_ended_is_not_brought_back_by_an_old_account(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("helper", "trainer")
            await world.start("head", "client", join="helper")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="helper")
            before = await world.until("head", lambda s: training(s) and steps(s) > 10)
            (name,) = (line.pipeline for line in before.pipelines())
            await world.crash("head")
            await world.start("head", "client", join="helper")
            # Adopted, then dissolved, since nobody can take the seat that is lost.
            await world.until("head", lambda s: s.run() and peer_of(s, "head").roles[0].phase == "training", 120)
            await world.crash("bob")
            await world.until("head", lambda s: not s.pipelines())
            for _ in range(100):
                await asyncio.sleep(0.05)
                assert name not in {line.pipeline for line in (await world.status("head")).pipelines()}

    run_virtual(scenario(), debug=False)


def test_of_two_pipelines_that_share_an_expert_one_is_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client")
            await world.start("helper", "trainer", join="head")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            status = await world.until("head", lambda s: training(s) and steps(s) > 10)
            (line,) = status.pipelines()
            run = status.peers[0].run
            assert run is not None
            # As another client had it that planned before it heard of this one.
            await remote(world, "helper").drive(run, PipelineId("p1-else"), 1, line.route)
            await asyncio.sleep(5.0)
            (left,) = (await world.status("head")).pipelines()
            assert left.pipeline == line.pipeline
            await world.until("head", lambda s: training(s) and steps(s) > left.step + 10)

    run_virtual(scenario(), debug=False)


def test_a_trainer_that_cannot_open_its_data_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = Trainer.prepare

    async def prepare(self: Trainer) -> None:
        config = await self._context.run.wait()
        if self._context.endpoint.host == "sick":
            raise DataError(f"no {config.data.source} here")
        await healthy(self)

    monkeypatch.setattr(Trainer, "prepare", prepare)

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client")
            await world.start("sick", "trainer", join="head")
            await world.until("head", lambda s: "no digits here" in str(s))
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            status = await world.until("head", lambda s: training(s) and steps(s) > 10)
            assert not peer_of(status, "sick").roles[0].pipelines

    run_virtual(scenario(), debug=False)


def test_an_expert_that_cannot_build_its_stage_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "model.options={breadth: 1}") as world:
            await world.start("head", "client")
            await world.start("alice", "expert", join="head")
            await world.until("head", lambda s: "breadth" in str(s))
            assert "TaskGroup" not in str(await world.status("head"))

    run_virtual(scenario(), debug=False)


def test_an_expert_that_is_moved_does_not_speak_of_its_old_stage(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            status = await start_pair(world, "client")
            await world.start("carol", "expert", join="head")
            run = status.peers[0].run
            assert run is not None
            await world.until("head", lambda s: len(s.experts()) == 3)
            await remote(world, "carol").assign(run, Order(StageIndex(0)))
            await world.until("carol", lambda s: all(expert.ready for _, expert in s.experts()))
            moved = await remote(world, "carol").assign(run, Order(StageIndex(1)))
            assert (moved.seated, moved.stage, moved.ready) == (True, 1, False)

    run_virtual(scenario(), debug=False)


def test_a_run_finishes_although_an_expert_is_lost_while_its_pipeline_settles(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=1", "plan.max_pipelines=2") as world:
            await world.start("head", "client")
            for host in ("alice", "bob", "carol", "dave"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: len(training(s)) == 2)
            status = await world.until("head", lambda s: (run := s.run()) and run.committed == run.budget, pause=0.001)
            seat: Seat = next(line for line in status.pipelines() if line.phase == "training").route[1]
            await world.crash(seat.endpoint.host)
            done = await world.until("head", lambda s: s.run() and s.run().finished)  # type: ignore[union-attr]
            assert "finished" in {line.phase for line in done.pipelines()}

    run_virtual(scenario(), debug=False)


def test_a_role_that_is_dropped_by_two_is_dropped_once_and_a_caller_may_hang_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            status = await start_pair(world, "client")
            leaver = next(peer for peer, expert in status.experts() if expert.seated and expert.stage == 1)
            host = leaver.endpoint.host
            impatient = asyncio.ensure_future(remote(world, host).drop_role("expert"))
            await asyncio.sleep(1.5 * world.network.delay)
            impatient.cancel()
            await world.until("head", lambda s: not peer_of(s, host).roles)
            await world.stop(host)

            other = next(name for name in ("alice", "bob") if name != host)
            async with asyncio.TaskGroup() as group:
                for _ in range(2):
                    group.create_task(remote(world, other).drop_role("expert"))
                await asyncio.sleep(1.5 * world.network.delay)
                group.create_task(world.stop(other))

    run_virtual(scenario(), debug=False)


class Tally:
    """The samples that stage 0 has learned from, all its experts together; and a stop at the worst moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: float) -> None:
        self.samples = 0
        self.stopped = 0
        self._late = late  # Seconds that the order to stop is under way.
        self._committed: dict[str, asyncio.Event] = {}  # By pipeline: set at its next commit.
        hear, drive = HeldSeat.committed, Trainer.drive

        async def committed(seat: HeldSeat, at: StepRef, samples: int) -> None:
            if seat.stage.index == 0:
                self.samples += samples
                self._committed.setdefault(seat.status(0.0).pipeline, asyncio.Event()).set()
            await hear(seat, at, samples)

        async def order(
            trainer: Trainer, pipeline: PipelineId, epoch: int, route: tuple[Seat, ...], *more: Any
        ) -> PipelineStatus:
            if not route:
                await self._hold(pipeline)
            return await drive(trainer, pipeline, epoch, route, *more)

        monkeypatch.setattr(HeldSeat, "committed", committed)
        monkeypatch.setattr(Trainer, "drive", order)

    async def _hold(self, pipeline: str) -> None:
        """Until stage 0 has applied a step of which the trainer cannot know yet."""
        await asyncio.sleep(self._late)
        self._committed[pipeline] = asyncio.Event()
        await self._committed[pipeline].wait()
        self.stopped += 1


def test_a_pipeline_that_is_stopped_books_its_last_steps_before_others_get_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally(monkeypatch, late=0.3)

    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=4", "data.batch=64") as world:
            await world.start("helper", "trainer")
            await world.start("head", "client", join="helper")
            for host in ("alice", "bob", "carol", "dave"):
                await world.start(host, "expert", join="helper")
            status = await world.until("head", lambda s: len(training(s)) == 2 and steps(s) > 4, pause=0.01)
            leaver: Seat = training(status)[0].route[1]
            await world.stop(leaver.endpoint.host)
            done = await world.until("head", lambda s: s.run() and s.run().finished)  # type: ignore[union-attr]
            run = done.run()
            assert run is not None
            assert tally.stopped
            assert (run.lost, run.doubled) == (0, 0)
            # What the stages have learned from, and not only what the books say.
            assert tally.samples == run.committed == run.budget

    run_virtual(scenario(), debug=False)


class Deafness:
    """Daemons that do not say what they do when they are asked, though they live and work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: set[str] = set()
        ask = Remote.status

        async def status(asked: Remote) -> PeerStatus:
            if asked.endpoint.host in self.hosts:
                await asyncio.sleep(asked.seconds / 5)
                raise DeadlineError("no answer in time")
            return await ask(asked)

        monkeypatch.setattr(Remote, "status", status)


def test_a_client_that_is_too_busy_to_answer_itself_loses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = Deafness(monkeypatch)

    async def scenario() -> None:
        async with open_world(tmp_path, "lease.min=0.5") as world:
            before = await start_pair(world, "client", "trainer")
            deaf.hosts = {"head"}
            await asyncio.sleep(2.0)
            deaf.hosts.clear()
            status = await world.status("head")
            run = status.run()
            assert run is not None
            assert (run.lost, run.doubled, run.losses) == (0, 0, ())
            assert [line.pipeline for line in training(status)] == [line.pipeline for line in before.pipelines()]

    run_virtual(scenario(), debug=False)
