"""The numbers of the stages make up the uncut model, whatever the cut and the fragments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distqat.config import RunConfig
from distqat.errors import ModelError
from distqat.ids import MicrobatchId
from distqat.model.build import build_uncut, plan_stages
from distqat.model.export.values import put, stage_values
from tests.model import helpers


def a_run(model: str, stages: int, **sections: Any) -> RunConfig:
    section = {"name": model, "stages": stages, "options": helpers.MODELS[model][1]}
    return RunConfig.model_validate({"model": section, **sections})


@pytest.mark.parametrize("model", helpers.MODELS)
@pytest.mark.parametrize(("stages", "fragments"), [(1, 1), (2, 1), (3, 3)])
def test_every_number_finds_its_place(model: str, stages: int, fragments: int) -> None:
    shape = helpers.MODELS[model][0]
    config = a_run(model, stages, sync={"fragments": fragments}, quant={"method": "lsq+"})
    chain = helpers.chain(config, shape)
    helpers.train(chain, shape, 2)
    whole = build_uncut(config, shape)
    for stage, own in zip(chain, plan_stages(config.model, shape), strict=True):
        there = stage_values(whole, stage.name, own, fragments)
        assert there.fragments == stage.fragments
        assert [slot.name for slot in there.layout] == [slot.name for slot in stage.layout]
        put(whole, there, [stage.gather([index]) for index in range(fragments)])
    found = dict(zip((slot.name for slot in whole.layout), [*whole.parameters, *whole.buffers], strict=True))
    expected = helpers.tensors(helpers.chain(a_run(model, 1, quant={"method": "lsq+"}), shape))
    assert found.keys() == expected.keys()
    if fragments == 1:
        assert all(torch.equal(found[name], tensor) for name, tensor in helpers.tensors(chain).items())
    inputs, _ = helpers.batch(shape, 9)
    hidden = inputs
    for stage in chain:
        hidden = helpers.wire(stage.forward(MicrobatchId(99, 0), hidden, train=False))
    assert torch.equal(whole.run(whole.enter(inputs), None), hidden)


def test_numbers_of_another_stage_are_refused() -> None:
    config = a_run("mlp", 2)
    chain = helpers.chain(config, helpers.IMAGES)
    whole = build_uncut(config, helpers.IMAGES)
    first, second = plan_stages(config.model, helpers.IMAGES)
    with pytest.raises(ModelError, match="not those of a stage mlp/1"):
        put(whole, stage_values(whole, "mlp/1", second, 1), [chain[0].gather([0])])
    assert first.stop == second.start
