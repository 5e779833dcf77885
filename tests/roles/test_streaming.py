"""Fragments and overlap with real stages and real averagers, against the formulas in one process, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distqat.model.stage import Stage
from tests.roles import siblings
from tests.roles.siblings import SAMPLES, Real, build, learn, places, run_config
from tests.support import run_virtual

COUNT = 2
ETA, MU = 0.5, 0.75


def settings(**changes: Any) -> dict[str, Any]:
    return {"warmup_steps": 0, "outer_learning_rate": ETA, "outer_momentum": MU, **changes}


class Naive:
    """Streaming DiLoCo (arXiv:2501.18512) in one process: whole vectors, and the formulas as they stand there."""

    def __init__(self, **sync: Any) -> None:
        self.run = run_config(**sync)
        self.stages: list[Stage] = [build(self.run) for _ in range(COUNT)]
        self.theta = self.stages[0].flatten()
        self.momentum = torch.zeros_like(self.theta)
        self.is_parameter = torch.arange(len(self.theta)) < self.stages[0].num_parameters

    def learn(self, step: int) -> None:
        for rank, stage in enumerate(self.stages):
            learn(stage, rank, step)

    def outer(self, fragment: int) -> Tensor:
        """Send what was learned of the fragment; its global parameters after the outer step."""
        at = places(self.stages[0], fragment)
        locals_ = [stage.flatten()[at] for stage in self.stages]
        half = torch.tensor(1 / COUNT)
        delta = (self.theta[at] - locals_[0]) * half
        mean = locals_[0] * half
        for local in locals_[1:]:
            delta = delta + (self.theta[at] - local) * half
            mean = mean + local * half
        momentum = self.momentum[at] * MU
        momentum = momentum + delta
        step = momentum * MU
        step = delta + step
        step = step * ETA
        is_parameter = self.is_parameter[at]
        self.momentum[at] = torch.where(is_parameter, momentum, 0.0)
        return torch.where(is_parameter, self.theta[at] - step, mean)

    def merge(self, fragment: int, fresh: Tensor, alpha: float) -> None:
        """theta_local <- alpha theta_local + (1 - alpha) theta_global, for the fragment, in every replica."""
        at = places(self.stages[0], fragment)
        self.theta[at] = fresh
        for stage in self.stages:
            local = stage.gather([fragment])
            stage.scatter([fragment], fresh if alpha == 0.0 else local * alpha + fresh * (1.0 - alpha))

    def train(self, steps: int, every: int, fragments: int, tau: int, alpha: float) -> None:
        """One fragment after the other, one every so many steps; each is merged tau steps later."""
        sent: tuple[int, int, Tensor] | None = None
        number = 0
        for step in range(1, steps + 1):
            self.learn(step)
            if sent is not None and step == sent[0] + tau:
                self.merge(sent[1], sent[2], alpha)
                sent = None
            if step % every == 0:
                sent = (step, number % fragments, self.outer(number % fragments))
                number += 1
                if tau == 0:
                    self.merge(sent[1], sent[2], 0.0)
                    sent = None


def committed(sibling: Real) -> Tensor:
    """What is committed of all fragments, in the order of the stage's flat vector."""
    whole = torch.empty(sibling.stage.num_elements)
    for index, part in enumerate(sibling.committed.parts):
        whole[places(sibling.stage, index)] = part.anchor
    return whole


def check_equal(found: list[Real], naive: Naive) -> None:
    assert len({sibling.committed.digest for sibling in found}) == 1
    for sibling, stage in zip(found, naive.stages, strict=True):
        assert committed(sibling).equal(naive.theta)
        assert sibling.stage.flatten().equal(stage.flatten())


@pytest.mark.parametrize(
    ("fragments", "tau", "alpha"), [(1, 0, 0.0), (3, 0, 0.0), (1, 2, 0.0), (1, 2, 0.5), (3, 1, 0.25), (3, 2, 0.5)]
)
def test_streaming_diloco(fragments: int, tau: int, alpha: float) -> None:
    sync = settings(inner_steps=3 * fragments, fragments=fragments, overlap=tau, merge=alpha)
    steps = 14

    async def scenario() -> None:
        async with siblings.circle(run_config(**sync), COUNT) as found:
            await siblings.together(found, lambda sibling: sibling.steps(steps))
            naive = Naive(**sync)
            naive.train(steps, 3, fragments, tau, alpha)
            assert found[0].committed.round == 4
            check_equal(found, naive)
            if alpha == 0.0:
                # What every contribution weighed: the steps whose outcome was in it.
                weighed = [receipt.samples // COUNT // SAMPLES for receipt in found[0].averager.receipts]
                assert weighed == [3, *([3 - tau] * 3 if fragments == 1 else [6, 9, 9 - tau])]

    run_virtual(scenario(), timeout=1000.0)


def test_fragments_at_the_same_step_are_plain_diloco() -> None:
    async def train(fragments: int) -> tuple[Tensor, Tensor, list[int]]:
        async with siblings.circle(run_config(**settings(inner_steps=99, fragments=fragments)), COUNT) as found:
            for _ in range(3):
                await siblings.together(found, lambda sibling: sibling.steps(4))
                await siblings.together(found, lambda sibling: sibling.rounds.settle())
            assert found[0].committed.digest == found[1].committed.digest
            assert found[0].stage.flatten().equal(committed(found[0]))
            rounds = [receipt.samples for receipt in found[0].averager.receipts]
            return found[0].stage.flatten(), found[1].stage.flatten(), rounds

    plain = run_virtual(train(1), timeout=1000.0)
    for fragments in (2, 5):
        first, second, rounds = run_virtual(train(fragments), timeout=1000.0)
        assert first.equal(plain[0])
        assert second.equal(plain[1])
        assert rounds == [samples for samples in plain[2] for _ in range(fragments)]


def test_the_warm_up_averages_all_fragments_after_every_step() -> None:
    async def train(fragments: int) -> Tensor:
        sync = {"warmup_steps": 5, "inner_steps": 10, "fragments": fragments}
        async with siblings.circle(run_config(**sync), COUNT) as found:
            await siblings.together(found, lambda sibling: sibling.steps(4))
            assert found[0].committed.round == 4
            assert found[0].stage.flatten().equal(found[1].stage.flatten())
            return found[0].stage.flatten()

    assert run_virtual(train(1), timeout=1000.0).equal(run_virtual(train(4), timeout=1000.0))


def test_eager_rounds_against_the_paper_and_what_is_committed_is_the_same_on_all() -> None:
    """arXiv:2502.12996, in fp64 and with an outer optimizer in each replica, as it stands there."""
    sync = settings(inner_steps=3, overlap=3, eager=True)
    steps = 13

    async def scenario() -> None:
        async with siblings.circle(run_config(**sync), COUNT) as found:
            await siblings.together(found, lambda sibling: sibling.steps(steps))
            assert found[0].committed.digest == found[1].committed.digest
            assert found[0].committed.round == 4
            stages = [build(run_config(**sync)) for _ in range(COUNT)]
            theta = [stage.flatten().double() for stage in stages]
            momentum = [torch.zeros_like(vector) for vector in theta]
            last: list[Tensor] = [torch.zeros_like(vector) for vector in theta]
            parameters = torch.arange(len(theta[0])) < stages[0].num_parameters
            for step in range(1, steps + 1):
                for rank, stage in enumerate(stages):
                    learn(stage, rank, step)
                if step % 3:
                    continue
                fresh = [vector - stage.flatten().double() for vector, stage in zip(theta, stages, strict=True)]
                late = torch.stack(last).mean(0)
                for rank, stage in enumerate(stages):
                    eager = late + (fresh[rank] - last[rank]) / COUNT
                    momentum[rank] = MU * momentum[rank] + eager
                    theta[rank] = theta[rank] - ETA * (eager + MU * momentum[rank])
                    statistics = stage.flatten()
                    stage.scatter([0], torch.where(parameters, theta[rank].float(), statistics))
                last = fresh
            for sibling, stage in zip(found, stages, strict=True):
                ours, theirs = sibling.stage.flatten()[parameters], stage.flatten()[parameters]
                assert (ours - theirs).norm() < 1e-4 * theirs.norm()
                assert not ours.equal(found[1 - sibling.rank].stage.flatten()[parameters])

    run_virtual(scenario(), timeout=1000.0)
