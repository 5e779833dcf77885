"""The same numbers over the real transport."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import torch

from distqat.ids import Endpoint
from distqat.model.device import Device
from distqat.rpc.grpc import open_transport
from distqat.wire_sections import LearnedCodes, WireSection
from tests.pipeline.swarm import GPT, MLP, Expert, Recipe, Swarm, add_expert, run_plain, train, train_whole

STEPS = range(1, 6)


LEARNED = replace(GPT, wire=WireSection(activations="learned", learned=LearnedCodes(bits=3)))


@pytest.mark.parametrize("recipe", [MLP, LEARNED], ids=["exact", "learned codes"])
def test_three_stages_over_grpc_equal_one_process(recipe: Recipe) -> None:
    async def scenario() -> tuple[list[dict[str, float]], torch.Tensor]:
        async with AsyncExitStack() as stack:
            device = await stack.enter_async_context(Device.open("cpu", threads=1))
            trainer = await stack.enter_async_context(open_transport())
            swarm = Swarm(recipe.config(3).id, trainer, [], [], [], recipe.limits())
            for index in range(3):
                transport = await stack.enter_async_context(open_transport())
                server = await stack.enter_async_context(transport.serve(Endpoint("127.0.0.1", 0)))
                add_expert(swarm, Expert(recipe.stage(index, 3), device), transport, server.endpoint)
                server.add(swarm.services[-1].service())
            async with swarm.open() as link:
                sums = await train(link, recipe, STEPS, 4)
                sums.append(await link.evaluate(recipe.batch(9), 2))
                await link.settle()
            flow = trainer.traffic()["pipeline"]
            assert flow.sent > 0
            assert flow.received > 0
            return sums, swarm.flat()

    sums, flat = run_plain(scenario())
    whole = recipe.whole(3)
    assert train_whole(whole, recipe, STEPS, 4) == sums[:-1]
    assert torch.equal(whole.flatten(), flat)
