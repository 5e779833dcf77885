"""Every config that is shipped: what it builds and how that is cut, and a step of it, tiny, over the real transport."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distqat.config import RunConfig, load
from distqat.data.sources import Source, open_source, source_shape
from distqat.data.tasks import find_task
from distqat.ids import Endpoint
from distqat.model import zoo
from distqat.model.build import build_stage, build_whole, plan_stages
from distqat.model.device import Device
from distqat.pipeline.route import Limits
from distqat.pipeline.tally import StepResult
from distqat.rpc.grpc import open_transport
from tests import dwarfs
from tests.pipeline.swarm import Expert, Swarm, Tensors, add_expert, add_up, run_plain

SIZES = {
    # As published, with heads of so many classes; gpt-neo-1.3b has another head where it is not tied.
    "resnet18": 11_173_962,
    "resnet18_split": 11_173_962,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "distilgpt2": 81_912_576,
    "distilgpt2_split": 81_912_576,
    "gptneo_small": 125_198_592,
    "gptneo": 1_315_575_808,
    "gptneo_split": 1_315_575_808 + 50257 * 2048,
    "llama_small": 124_668_672,
    "wav2vec2": 94_394_013,
    "wav2vec2_split": 94_394_013,
}

DATA = {"uoft-cs/cifar10", "ILSVRC/imagenet-1k", "Salesforce/wikitext", "HuggingFaceFW/fineweb", "allenai/c4"} | {
    "openslr/librispeech_asr"
}


def shipped(name: str) -> RunConfig:
    return load(dwarfs.CONFIGS / f"{name}.yaml").run_config()


def test_every_family_has_its_configs() -> None:
    found = {path.stem for path in dwarfs.CONFIGS.glob("*.yaml")}
    assert found == {*SIZES, "digits", "pydocs", "template"}
    assert {shipped(name).dataset.path for name in SIZES} == DATA
    assert {name for name in SIZES if shipped(name).model.stages > 1} >= {n for n in SIZES if n.endswith("split")}


@pytest.mark.parametrize("name", SIZES)
def test_a_config_builds_the_model_that_it_speaks_of(name: str) -> None:
    """On the meta device, at its real size."""
    run = shipped(name)
    shape = source_shape(run).data
    plan = zoo.plan(run.model, shape)
    with torch.device("meta"):
        blocks = nn.ModuleList(spec.make() for spec in plan.blocks)
    assert sum(parameter.numel() for parameter in blocks.parameters()) == SIZES[name]
    # The learning rate follows DiLoCo's recipe in all of them.
    assert (run.sync.outer_learning_rate, run.sync.outer_momentum) == (0.7, 0.9)
    assert run.sync.warmup_steps > 0
    assert run.sync.ramp_rounds > 0
    assert run.optimizer.schedule == "cosine"
    assert run.optimizer.warmup_steps > 0
    assert run.optimizer.clip_norm > 0


@pytest.mark.parametrize("name", [name for name in SIZES if shipped(name).model.stages > 1])
def test_a_config_is_cut_into_stages_of_about_equal_cost(name: str) -> None:
    run = shipped(name)
    shape = source_shape(run).data
    plan = zoo.plan(run.model, shape)
    costs = [sum(plan.costs[block] for block in own) for own in plan_stages(run.model, shape)]
    assert max(costs) < 1.1 * sum(costs) / len(costs)


def tensors(source: Source, number: int) -> Tensors:
    arrays = source.train.batch(np.arange(number))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


async def one_step(run: RunConfig, source: Source) -> tuple[StepResult, dict[str, float], list[torch.Tensor]]:
    """A step through the run's stages, each behind its own server, and an evaluation after it."""
    task, count = find_task(source.task), run.model.stages
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(Device.open("cpu", threads=1))
        trainer = await stack.enter_async_context(open_transport())
        swarm = Swarm(run.id, trainer, [], [], [], Limits.of(run))
        for index in range(count):
            transport = await stack.enter_async_context(open_transport())
            server = await stack.enter_async_context(transport.serve(Endpoint("127.0.0.1", 0)))
            stage = build_stage(run, source.shape, index, task if index == count - 1 else None)
            add_expert(swarm, Expert(stage, device), transport, server.endpoint)
            server.add(swarm.services[-1].service())
        async with swarm.open() as link:
            result = await link.train(1, tensors(source, run.data.batch), run.data.microbatches, 0.5)
            evaluation = await link.evaluate(tensors(source, run.data.batch), run.data.microbatches)
        return result, evaluation, [expert.stage.flatten() for expert in swarm.experts]


@pytest.mark.parametrize("name", SIZES)
def test_a_tiny_step_of_a_config_is_trained_in_a_swarm(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = dwarfs.settings(name, tmp_path).run_config()
    source = open_source(run)
    assert source.shape == source_shape(run).data
    result, evaluation, states = run_plain(one_step(run, source))
    whole = build_whole(run, source.shape, find_task(source.task))
    assert len(states) == shipped(name).model.stages
    assert not torch.equal(torch.cat(states), whole.flatten())
    # The first losses are those of one process, as far as what travels is not rounded.
    expected = add_up(whole, 1, tensors(source, run.data.batch), run.data.microbatches)
    assert result.sums["samples"] == run.data.batch == evaluation["samples"]
    assert result.sums["loss"] == pytest.approx(expected["loss"], rel=1e-2 if run.wire.activations == "int8" else 0)
    assert 0 < evaluation["loss"] != result.sums["loss"]
