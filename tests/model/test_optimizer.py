"""Our optimizers are torch's, bit for bit, without what torch's cost to set up."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from distqat.model.optimizer import build_optimizer
from distqat.sections import OptimizerSection

RATES = [0.01, 0.02, 0.02, 0.005]


def parameters() -> dict[str, nn.Parameter]:
    numbers = torch.Generator().manual_seed(3)
    return {
        name: nn.Parameter(torch.randn(shape, generator=numbers))
        for name, shape in {"weight": (37, 19), "bias": (19,), "one": (1,)}.items()
    }


def fill(own: dict[str, nn.Parameter], seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    for parameter in own.values():
        parameter.grad = torch.randn(parameter.shape, generator=numbers)


def torchs(section: OptimizerSection, own: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    values: dict[str, Any] = {"lr": section.learning_rate, "weight_decay": section.weight_decay, "fused": True}
    if section.name == "adamw":
        return torch.optim.AdamW(own.values(), **values)
    return torch.optim.SGD(own.values(), momentum=section.momentum, nesterov=section.nesterov, **values)


SECTIONS = [
    OptimizerSection(),
    OptimizerSection(weight_decay=0),
    OptimizerSection(name="sgd"),
    OptimizerSection(name="sgd", nesterov=False, weight_decay=0),
    OptimizerSection(name="sgd", nesterov=False, momentum=0),
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda own: f"{own.name} {own.weight_decay} {own.momentum}")
def test_same_bits_as_torch(section: OptimizerSection) -> None:
    mine, other = parameters(), parameters()
    ours, theirs = build_optimizer(section, mine), torchs(section, other)
    for step, rate in enumerate(RATES):
        fill(mine, step)
        fill(other, step)
        ours.step(rate)
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        for name in mine:
            assert torch.equal(mine[name], other[name])


def test_sgd_is_the_papers_formula() -> None:
    section = OptimizerSection(name="sgd", weight_decay=0.1, momentum=0.5)
    own = parameters()
    optimizer = build_optimizer(section, own)
    value = own["weight"].detach().double()
    velocity = torch.zeros_like(value)
    for step, rate in enumerate(RATES):
        fill(own, step)
        assert own["weight"].grad is not None
        gradient = own["weight"].grad.double() + 0.1 * value
        velocity = 0.5 * velocity + gradient
        value = value - rate * (gradient + 0.5 * velocity)
        optimizer.step(rate)
    torch.testing.assert_close(own["weight"].detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("section", SECTIONS[::2], ids=lambda own: f"{own.name} {own.momentum}")
def test_state_by_name_is_all_that_it_remembers(section: OptimizerSection) -> None:
    one, other = parameters(), parameters()
    trained, fresh = build_optimizer(section, one), build_optimizer(section, other)
    for step in range(3):
        fill(one, step)
        trained.step(0.01)
    assert trained.state().keys() == fresh.state().keys()
    with torch.no_grad():
        for name, parameter in one.items():
            other[name].copy_(parameter)
        for name, tensor in trained.state().items():
            assert tensor.dtype == torch.float32
            fresh.state()[name].copy_(tensor)
    for own, optimizer in ((one, trained), (other, fresh)):
        fill(own, 9)
        optimizer.step(0.01)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_names_of_the_state() -> None:
    own = parameters()
    names = {"steps", *(f"{kind}/{name}" for kind in ("first", "second") for name in own)}
    assert build_optimizer(OptimizerSection(), own).state().keys() == names
    assert build_optimizer(OptimizerSection(name="sgd"), own).state().keys() == {f"velocity/{name}" for name in own}
    assert not build_optimizer(OptimizerSection(name="sgd", momentum=0), own).state()


@pytest.mark.parametrize("section", SECTIONS[::2], ids=lambda own: f"{own.name} {own.momentum}")
def test_a_parameter_without_gradient_stays(section: OptimizerSection) -> None:
    own = parameters()
    optimizer = build_optimizer(section, own)
    before = {name: parameter.detach().clone() for name, parameter in own.items()}
    optimizer.step(0.1)
    assert all(torch.equal(own[name], before[name]) for name in own)
    own["bias"].grad = torch.ones(19)
    optimizer.step(0.1)
    assert [name for name in own if not torch.equal(own[name], before[name])] == ["bias"]


def test_training_imports_no_compiler() -> None:
    script = (
        "import sys\n"
        "from tests.model import helpers\n"
        "for name in ('adamw', 'sgd'):\n"
        "    helpers.train(helpers.stages('mlp', 2, precision='fp16', name=name), helpers.IMAGES, 1)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
