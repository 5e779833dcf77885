"""The code of a stage fails on one machine: the daemon lives on, another takes the stage, and no sample is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distqat.ids import Endpoint, StageIndex
from distqat.model.stage import Stage
from distqat.roles.orders.order import Order
from distqat.roles.remote import Remote
from distqat.roles.status import RunStatus, SwarmStatus
from distqat.roles.trainer import Trainer
from tests.sim.swarm import PORT, World, open_world, peer_of, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]


class Trap:
    """Lets `Stage.loss` of one seat fail, from the moment at which it is set on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
        self.fail: Callable[[], Exception] = RuntimeError
        self.times = 0  # How often it may still fail.
        self._world = world
        self._stage: Any = None
        healthy = Stage.loss

        def loss(stage: Stage, *arguments: Any, **named: Any) -> Any:
            if stage is self._stage and self.times:
                self.times -= 1
                raise self.fail()
            return healthy(stage, *arguments, **named)

        monkeypatch.setattr(Stage, "loss", loss)

    def spring(self, host: str, fail: Callable[[], Exception], times: int) -> None:
        """The last stage, which that host holds now, fails so often."""
        expert: Any = self._world.peers[host].roster.get("expert")
        self._stage, self.fail, self.times = expert.seat.stage, fail, times


def books(status: SwarmStatus) -> RunStatus:
    run = status.run()
    assert run is not None
    return run


def phase_of(status: SwarmStatus, host: str) -> str:
    expert = peer_of(status, host).role("expert")
    return expert.phase if expert is not None else ""


async def start(world: World) -> SwarmStatus:
    """Two siblings of the last stage, which have committed a round, and one expert of the first."""
    await world.start("head", "client")
    for host in ("alice", "bob", "carol"):
        await world.start(host, "expert", join="head")
    return await world.until(
        "head",
        lambda s: training(s) and steps(s) > 5 and [e.ready for _, e in s.experts() if e.seated].count(True) >= 2,
    )


def test_one_failure_costs_a_replay_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            trap = Trap(monkeypatch, world)
            before = await start(world)
            last = training(before)[0].route[1]
            trap.spring(last.endpoint.host, lambda: torch.OutOfMemoryError("CUDA out of memory"), 1)
            after = await world.until("head", lambda s: training(s) and steps(s) > steps(before) + 10)
            assert trap.times == 0
            (line,) = training(after)
            assert line.replayed >= 1
            assert last in line.route
            run = books(after)
            assert (run.skipped, run.lost, run.doubled, run.losses) == (0, 0, 0, ())

    run_virtual(scenario(), debug=False)


def test_an_expert_that_fails_again_and_again_gives_its_seat_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "plan.max_pipelines=1") as world:
            trap = Trap(monkeypatch, world)
            await world.start("head", "client")
            for host in ("alice", "bob", "carol"):
                await world.start(host, "expert", join="head")
            before = await world.until("head", lambda s: training(s) and steps(s) > 5)
            last = training(before)[0].route[1]
            run = before.peers[0].run
            assert run is not None
            # A sibling, so that its state is not alone.
            used = {seat.endpoint.host for seat in training(before)[0].route}
            other = next(host for host in ("alice", "bob", "carol") if host not in used)
            remote = Remote(world.network.transport("observer"), Endpoint(other, PORT), seconds=60.0)
            await remote.assign(run, Order(StageIndex(1)))
            await world.until(
                "head", lambda s: len([e for _, e in s.experts() if e.seated and e.stage == 1 and e.ready]) == 2
            )
            trap.spring(last.endpoint.host, lambda: RuntimeError("a kernel failed"), 1000)
            resting = await world.until("head", lambda s: phase_of(s, last.endpoint.host) == "failed")
            expert = peer_of(resting, last.endpoint.host).role("expert")
            assert expert is not None
            assert "takes no stage for" in expert.reason
            assert "RuntimeError: a kernel failed" in expert.reason
            after = await world.until("head", lambda s: training(s) and steps(s) > steps(before) + 10)
            assert last not in training(after)[0].route
            assert (books(after).skipped, books(after).lost, books(after).doubled) == (0, 0, 0)

    run_virtual(scenario(), debug=False)


def test_a_role_that_fails_again_and_again_is_dropped_and_the_daemon_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = Trainer.prepare

    async def prepare(self: Trainer) -> None:
        if self._context.endpoint.host == "sick":
            raise KeyError("a fault of ours")
        await healthy(self)

    monkeypatch.setattr(Trainer, "prepare", prepare)

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.start("head", "client")
            await world.start("sick", "trainer", join="head")
            dropped = await world.until("sick", lambda s: "dropped" in str(peer_of(s, "sick").roles), 600, pause=5.0)
            trainer = peer_of(dropped, "sick").role("trainer")
            assert trainer is not None
            assert trainer.reason == "dropped: given up after 20 failures in a row: 'a fault of ours'"
            assert world.peers["sick"].roster.names() == ()
            # It may be asked for again.
            monkeypatch.setattr(Trainer, "prepare", healthy)
            await world.peers["sick"].roster.add("trainer")
            await world.until("sick", lambda s: peer_of(s, "sick").role("trainer").phase != "failed")  # type: ignore[union-attr]

    run_virtual(scenario(), debug=False)
