"""Clipping, precision and the learning rate: a pipeline still gives the numbers of one process, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distqat.model.agreement import LossScale, Verdict
from distqat.pipeline.hop import DOWNWARD, Hop, pack, unpack
from distqat.pipeline.messages import SERVICE
from distqat.pipeline.route import HopError
from distqat.pipeline.words import AS_IT_IS, Gradient, Microbatch, Opened
from distqat.rpc.transport import Caller, Service, Stream
from distqat.sections import OptimizerSection
from tests.pipeline.swarm import (
    GPT,
    LIMITS,
    MLP,
    RESNET,
    Recipe,
    open_swarm,
    progress_of,
    run_plain,
    train,
    train_whole,
)

STEPS = range(1, 9)

CLIPPED = OptimizerSection(clip_norm=0.05)
COSINE = OptimizerSection(name="sgd", schedule="cosine", clip_norm=0.5)


def vary(recipe: Recipe, **changes: object) -> Recipe:
    return replace(recipe, **changes)  # type: ignore[arg-type]


CASES = {
    "clipping mlp": vary(MLP, optimizer=CLIPPED),
    "clipping gpt": vary(GPT, optimizer=CLIPPED),
    "cosine resnet": vary(RESNET, optimizer=COSINE),
    "bf16 gpt": vary(GPT, precision="bf16", optimizer=CLIPPED),
    "fp16 gpt": vary(GPT, precision="fp16"),
    "fp16 clipping mlp": vary(MLP, precision="fp16", optimizer=CLIPPED),
}


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_equals_one_process_bit_for_bit(name: str, stages: int) -> None:
    recipe = CASES[name]

    async def scenario() -> tuple[list[dict[str, float]], torch.Tensor, Verdict]:
        async with open_swarm(recipe, stages) as swarm, swarm.open() as link:
            sums = await train(link, recipe, STEPS, 4)
        assert {service.standing.verdict for service in swarm.services} == {link.verdict}
        return sums, swarm.flat(), link.verdict

    sums, flat, verdict = run_plain(scenario())
    whole = recipe.whole()
    assert train_whole(whole, recipe, STEPS, 4) == sums
    assert torch.equal(whole.flatten(), flat)
    if "clipping" in name:
        assert 0 < verdict.factor < 1
    # And something is changed by it.
    plain = vary(recipe, optimizer=OptimizerSection(name=recipe.optimizer.name), precision="fp32")
    other = plain.whole()
    train_whole(other, plain, STEPS, 4)
    assert not torch.equal(other.flatten(), flat)


FP16 = vary(MLP, precision="fp16")
TOO_FAR = LossScale(2.0**24)


@pytest.mark.parametrize("stages", [1, 3])
def test_a_step_that_overflows_is_skipped_in_all_stages(stages: int) -> None:
    async def scenario() -> tuple[torch.Tensor, torch.Tensor, list[Verdict]]:
        async with open_swarm(FP16, stages) as swarm, swarm.open(verdict=Verdict(1.0, TOO_FAR)) as link:
            verdicts: list[Verdict] = []
            before = swarm.flat()
            while not verdicts or link.verdict.factor == 0.0:
                step = link.step + 1
                result = await link.train(step, FP16.batch(step), 4, progress_of(step))
                assert result.verdict == link.verdict
                verdicts.append(link.verdict)
                if len(verdicts) == 1:
                    # Comes to every stage behind the commit.
                    await link.settle()
                    assert torch.equal(swarm.flat(), before)
            # A commit runs down the route: when it closes in order, all have heard of it.
        assert [expert.stage.version for expert in swarm.experts] == [len(verdicts)] * stages
        return before, swarm.flat(), verdicts

    before, flat, verdicts = run_plain(scenario())
    assert verdicts[0] == Verdict(0.0, LossScale(2.0**23))
    assert len(verdicts) > 1
    assert verdicts[-1].scale == LossScale(TOO_FAR.value / 2 ** (len(verdicts) - 1), 1)
    assert not torch.equal(before, flat)
    whole = FP16.whole()
    train_whole(whole, FP16, range(1, len(verdicts) + 1), 4, TOO_FAR)
    assert torch.equal(whole.flatten(), flat)


def test_a_newcomer_learns_the_loss_scale_and_a_trainer_that_forgot_it_too() -> None:
    async def scenario() -> None:
        async with open_swarm(FP16, 3) as swarm:
            async with swarm.open(verdict=Verdict(1.0, TOO_FAR)) as link:
                await train(link, FP16, range(1, 4), 4)
                verdict = link.verdict
            assert verdict.scale.value < TOO_FAR.value
            assert {expert.stage.loss_scale for expert in swarm.experts} == {verdict.scale.value}
            last = swarm.experts[2]
            state = last.stage.flatten()
            last.stage = FP16.stage(2, 3)
            last.stage.scatter([0], state)
            async with swarm.open(3, verdict=verdict) as link:
                assert last.stage.loss_scale == verdict.scale.value
                assert (last.stage.version, link.verdict) == (3, verdict)
                await train(link, FP16, range(4, 7), 4)
                verdict = link.verdict
            # The stages know better than a trainer that knows only the step.
            async with swarm.open(6) as link:
                assert link.verdict == verdict
            assert {service.standing.verdict for service in swarm.services} == {verdict}

    run_plain(scenario())


@pytest.mark.parametrize(
    ("clip", "norms", "words"), [(0.5, (), "0 norms"), (0.0, (1.0,), "1 norms")], ids=["missing", "not asked for"]
)
def test_norms_come_where_they_are_needed_and_nowhere_else(clip: float, norms: tuple[float, ...], words: str) -> None:
    recipe = vary(MLP, optimizer=OptimizerSection(clip_norm=clip))

    async def answer(stream: Stream, caller: Caller) -> None:
        hop = Hop(stream, DOWNWARD, LIMITS.max_message)
        await hop.receive()
        await hop.send(Opened(0))
        while (received := await hop.receive()) is not None:
            message, payload = received
            if isinstance(message, Microbatch):
                hidden = (await unpack(message.tensors, payload))["hidden"]
                headers, back = await pack({"gradient": hidden}, "none")
                await hop.send(Gradient(message.step, message.index, headers, norms, {"loss": 1.0}), back)

    async def scenario() -> HopError:
        async with open_swarm(recipe, 2) as swarm:
            swarm.servers[1].add(Service(SERVICE, streams={"Hop": answer}))
            with pytest.raises(HopError) as caught:
                async with swarm.open() as link:
                    await link.train(1, recipe.batch(1), 1)
            return caught.value

    error = run_plain(scenario())
    assert (error.kind, error.peer) == ("MessageError", "expert1")
    assert words in error.reason


def test_without_clipping_nothing_is_said_and_nothing_is_multiplied() -> None:
    async def scenario() -> None:
        async with open_swarm(MLP, 2) as swarm, swarm.open() as link:
            await train(link, MLP, [1, 2], 4)
            assert link.verdict == AS_IT_IS

    run_plain(scenario())
