"""A family's model, cut anywhere, is the uncut one of `transformers`, bit for bit; dropout on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distqat.model.agreement import LossScale
from distqat.model.build import build_stage
from distqat.model.stage import Stage
from tests.model import helpers
from tests.model.test_cut import assert_same
from tests.model.zoo import oracle

STEPS = 3


def pretrained(family: oracle.Family, stages: int, where: str) -> list[Stage]:
    run = oracle.run(family, stages, where, {})
    return [build_stage(run, family.shape, index, family.task) for index in range(stages)]


@pytest.mark.parametrize("name", oracle.FAMILIES)
def test_every_cut_is_the_librarys_uncut_model(name: str, tmp_path: Path) -> None:
    family = oracle.FAMILIES[name]
    model = oracle.whole(family)
    where = oracle.save(model, tmp_path)
    drives = [helpers.Drive(pretrained(family, number, where)) for number in (1, 2, 3, 5)]
    plain = oracle.Oracle(family, model)
    config = oracle.run(family, 1, where, {})

    def ours(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return oracle.names(config, family.shape, found)

    for step in range(1, STEPS + 1):
        inputs, labels = oracle.batch(family.shape, step)
        loss = plain.compute(inputs, labels)
        for drive in drives:
            assert drive.compute(step, inputs, labels) == loss
            assert_same(ours(oracle.gradients(drive.chain)), plain.gradients())
            drive.conclude(step)
        plain.apply()
        for drive in drives:
            assert_same(ours(helpers.tensors(drive.chain)), {n: p.detach() for n, p in model.named_parameters()})


@pytest.mark.parametrize("name", oracle.FAMILIES)
def test_an_evaluation_is_the_librarys(name: str, tmp_path: Path) -> None:
    family = oracle.FAMILIES[name]
    model = oracle.whole(family).eval()
    (whole,) = pretrained(family, 1, oracle.save(model, tmp_path))
    inputs, _ = oracle.batch(family.shape, 1)
    with torch.no_grad():
        expected = family.call(model, inputs)
    assert torch.equal(whole._evaluate(inputs), expected)


@pytest.mark.parametrize("name", oracle.FAMILIES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cut_changes_nothing_in_low_precision(name: str, precision: str) -> None:
    family = oracle.FAMILIES[name]
    ends, losses = [], []
    for number in (1, 3):
        run = oracle.run(family, number, precision=precision)
        chain = [build_stage(run, family.shape, index, family.task) for index in range(number)]
        drive = helpers.Drive(chain, LossScale(64.0) if precision == "fp16" else None)
        losses.append([drive.step(step, *oracle.batch(family.shape, step)) for step in (1, 2)])
        ends.append(helpers.tensors(drive.chain))
        assert all(factor > 0 for factor in drive.factors)
    assert losses[0] == losses[1]
    assert_same(ends[0], ends[1])
