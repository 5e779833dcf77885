"""A swarm whose hops carry learned codes: siblings agree on the steps, and who takes over has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from distqat.model.stage import Stage
from distqat.roles.status import PeerStatus, SwarmStatus
from tests.model import helpers
from tests.sim.swarm import World, open_world, steps, training
from tests.sim.test_swarm import books, expert_digests
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

LEARNED = (
    "wire.activations=learned",
    "wire.learned={bits: 4, signed: false}",
    "wire.gradients=int8",
    "model.options={hidden: 48, depth: 3}",
    "train.epochs=0.7",
)


def stage_of(world: World, host: str) -> Stage:
    expert = world.peers[host].roster.get("expert")
    stage: Stage = expert.seat.stage  # type: ignore[attr-defined]
    return stage


def seat_of(status: SwarmStatus, stage: int) -> PeerStatus:
    """The first expert that has a seat of the stage."""
    return next(peer for peer, expert in status.experts() if expert.seated and expert.stage == stage)


def test_siblings_agree_on_the_steps_and_who_takes_over_has_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, *LEARNED) as world:
            await world.start("head", "client")
            for host in ("alice", "bob", "carol", "dave", "spare"):
                await world.start(host, "expert", join="head")
            before = await world.until("head", lambda s: len(training(s)) == 2 and steps(s) > 6)
            sender = seat_of(before, 0).endpoint.host
            await world.crash(sender)
            status = await world.until("head", lambda s: books(s).finished, 300)
            assert (books(status).lost, books(status).doubled) == (0, 0)
            assert all(len(digests) == 1 for digests in expert_digests(status).values())
            seated = [peer.endpoint.host for peer, expert in status.experts() if expert.seated and expert.stage == 0]
            assert len(seated) == 2
            assert sender not in seated
            for host in seated:
                tensors = helpers.tensors([stage_of(world, host)])
                (step,) = (tensor for name, tensor in tensors.items() if name.endswith("boundary_step"))
                (flag,) = (tensor for name, tensor in tensors.items() if name.endswith("boundary_initialised"))
                assert float(flag) == 1
                assert 0 < float(step) < 1
            # One image in ten is guessed right.
            assert all(line.evaluation > 0.2 for line in status.pipelines())

    run_virtual(scenario(), debug=False)
