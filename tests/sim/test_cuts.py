"""Two pipelines over two stages: how often both stages come to a round, and to a checkpoint, at the same steps."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest
from torch import Tensor

from distqat.averaging.averager import Averager, Outcome
from distqat.averaging.committed import Committed
from distqat.averaging.outer import OuterState
from distqat.errors import RoundError
from distqat.ids import StepRef
from distqat.roles import expert
from distqat.roles.checkpoint.files import Manifest
from distqat.roles.checkpoint.keeper import Groups, Keeper
from tests.sim.swarm import World, open_world, steps, training
from tests.sim.test_rates import SLOWNESS, SlowDevice
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(300)]

Cut = frozenset[StepRef]


class Watch:
    """The cuts of what is committed, and those of checkpoints, by stage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds: dict[int, set[Cut]] = defaultdict(set)
        self.checkpoints: dict[int, set[Cut]] = defaultdict(set)
        move, offer = Committed._move, Keeper.offer

        def moved(committed: Committed, state: OuterState) -> None:
            self.rounds[committed.context.stage].add(frozenset(state.cut))
            move(committed, state)

        def offered(keeper: Keeper, manifest: Manifest, groups: Groups) -> None:
            self.checkpoints[manifest.checkpoint.stage].add(frozenset(manifest.checkpoint.cut))
            offer(keeper, manifest, groups)

        monkeypatch.setattr(Committed, "_move", moved)
        monkeypatch.setattr(Keeper, "offer", offered)


def share(cuts: dict[int, set[Cut]]) -> tuple[int, int]:
    """Of the cuts in which two pipelines are, how many both stages have."""
    first, second = ({cut for cut in cuts[stage] if len(cut) == 2} for stage in (0, 1))
    return len(first & second), len(first | second)


async def start(world: World, monkeypatch: pytest.MonkeyPatch, slowness: tuple[float, ...]) -> None:
    """The second pipeline is formed when the first has trained for a while."""
    monkeypatch.setattr(expert, "Device", SlowDevice)
    await world.start("head", "client", "trainer")
    for index, slow in enumerate(slowness):
        if index == 2:
            await world.until("head", lambda s: steps(s) > 20)
        SLOWNESS.set(slow)
        await world.start(f"e{index}", "expert", join="head", stage=index % 2)
    await world.until("head", lambda s: len(training(s)) == 2)


def fail_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thirty-first call for a round of stage 1 comes to nothing."""
    synchronise, calls = Averager.synchronise, iter(range(1, 1 << 20))

    async def fails(averager: Averager, local: Tensor, samples: int, origins: tuple[StepRef, ...] = ()) -> Outcome:
        if averager.context.stage == 1 and next(calls) % 31 == 0:
            raise RoundError("it is not to be")
        return await synchronise(averager, local, samples, origins)

    monkeypatch.setattr(Averager, "synchronise", fails)


SETTINGS = ("sync.codec=none", "checkpoint.steps=8", "data.adaptive=false")


@pytest.mark.parametrize("overlap", [2, pytest.param(0, marks=pytest.mark.soak)])
def test_stages_come_to_rounds_and_to_checkpoints_at_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: int
) -> None:
    watch = Watch(monkeypatch)

    async def scenario() -> None:
        async with open_world(tmp_path, *SETTINGS, f"sync.overlap={overlap}") as world:
            world.network.jitter = 0.03
            fail_some(monkeypatch)
            await start(world, monkeypatch, (1.0, 2.0, 1.5, 1.0))
            await asyncio.sleep(12.0)

    run_virtual(scenario(), debug=False)
    for cuts in (watch.rounds, watch.checkpoints):
        both, any_stage = share(cuts)
        # A round that fails in one stage is one that the other has for itself.
        assert any_stage >= 6
        assert both >= 0.5 * any_stage, f"{both} of {any_stage}"
