"""A pipeline that is fenced: its routes are over for good, and all stages end at the same step."""

from __future__ import annotations

import pytest
import torch

from distqat.errors import FencedError
from distqat.ids import MicrobatchId, PipelineId
from distqat.model.agreement import Verdict
from distqat.pipeline.link import Link
from distqat.pipeline.route import HopError
from distqat.pipeline.standing import MAX_PIPELINES, LastStep, Standing, StepSize
from distqat.pipeline.words import AS_IT_IS
from distqat.rpc.local import Network
from tests.pipeline.cuts import Cut, CutTransport, Point, Scissors
from tests.pipeline.swarm import PIPELINE, TINY, Swarm, open_swarm, progress_of, train, train_whole
from tests.support import run, until


async def step_of(link: Link, step: int) -> None:
    await link.train(step, TINY.batch(step), 2, progress_of(step), claim=100 + step)


async def steps_of(link: Link, *steps: int) -> None:
    for step in steps:
        await step_of(link, step)


async def fence(swarm: Swarm, step: int = 0, verdict: Verdict = AS_IT_IS) -> list[LastStep]:
    return [await service.fence(PIPELINE, step, verdict) for service in swarm.services]


def test_a_fenced_pipeline_is_displaced_and_says_what_was_its_last_claim() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            async with swarm.open() as link:
                await step_of(link, 1)
                await step_of(link, 2)
                # The last stage hears of a commit with the next step, or when the route ends.
                assert await swarm.services[0].fence(PIPELINE, 0, AS_IT_IS) == LastStep(2, 102)
                with pytest.raises(HopError):
                    await step_of(link, 3)
            assert [last.step for last in await fence(swarm, 2)] == [2, 2]

    run(scenario())


def test_no_route_of_it_opens_again_whatever_its_epoch_and_others_do() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            await swarm.services[1].fence(PIPELINE, 0, AS_IT_IS)
            with pytest.raises(HopError, match="its samples are with others") as caught:
                async with swarm.open(0, swarm.route(1 << 40)):
                    pass
            assert (caught.value.kind, caught.value.peer) == (FencedError.__name__, "expert1")
            async with swarm.open(0, swarm.route(1, PipelineId("another"))) as link:
                await train(link, TINY, range(1, 3), 2)
            assert await fence(swarm) == [LastStep(), LastStep()]

    run(scenario())


def test_a_step_that_only_stage_0_has_committed_is_applied_by_the_others() -> None:
    async def scenario() -> None:
        network = Network(seed=3)
        cut = Cut(Point("expert0>expert1", "before", "Commit 2"), ("expert0>expert1", "trainer>expert0"))
        scissors = Scissors(network, [cut])
        async with open_swarm(
            TINY, 2, network=network, wrap=lambda transport, name: CutTransport(transport, name, scissors)
        ) as swarm:
            async with swarm.open() as link:
                with pytest.raises(HopError):
                    await steps_of(link, 1, 2, 3)
            await until(lambda: scissors.is_done)
            first, second = await fence(swarm)
            assert ((first.step, first.claim), (second.step, second.claim)) == ((2, 102), (1, 101))
            again = await fence(swarm, first.step, first.verdict)
            assert again == [first, first]
            assert again == await fence(swarm, first.step, first.verdict)
            whole = TINY.whole()
            train_whole(whole, TINY, range(1, 3), 2)
            assert torch.equal(swarm.flat(), whole.flatten())

    run(scenario())


def test_a_pipeline_that_never_came_here_can_be_fenced() -> None:
    standing, stage = Standing(), TINY.whole()
    standing.fence(PIPELINE)
    assert standing.close(stage, PIPELINE, 7, AS_IT_IS) == LastStep()
    assert stage.version == 0
    with pytest.raises(FencedError):
        standing.note_epoch(PIPELINE, 1)


def test_the_memory_of_last_steps_is_bounded() -> None:
    standing, stage = Standing(), TINY.whole()
    for number in range(MAX_PIPELINES + 1):
        pipeline = PipelineId(f"p{number}")
        standing.reach(stage, pipeline, 0)
        standing.note_size(1, StepSize(1, 4, claim=number))
        batch = TINY.batch(1)
        stage.loss(MicrobatchId(1, 0), batch["inputs"], {"labels": batch["labels"]}, 4)
        standing.apply(stage, 1)
    assert standing.close(stage, PipelineId("p0"), 0, AS_IT_IS) == LastStep()
    assert standing.close(stage, PipelineId("p1"), 0, AS_IT_IS) == LastStep(1, 1)
