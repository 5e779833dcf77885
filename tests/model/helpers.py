"""Small runs for the tests of this room: a task, data, and a pipeline that is chained by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distqat.config import RunConfig
from distqat.ids import MicrobatchId
from distqat.model.agreement import LossScale, decide, first_scale
from distqat.model.build import build_stage
from distqat.model.shapes import DataShape
from distqat.model.stage import CPU, Stage
from distqat.model.terms import Terms

torch.set_num_threads(1)

MICROBATCHES = 4
SAMPLES = 4
"""In each microbatch."""

IMAGES = DataShape("image", (1, 8, 8), 10)
TOKENS = DataShape("tokens", (8,), 32)

MODELS: dict[str, tuple[DataShape, dict[str, Any]]] = {
    "mlp": (IMAGES, {"hidden": 24, "depth": 4}),
    "resnet": (IMAGES, {"width": 4, "blocks": [1, 1, 1]}),
    "gpt": (TOKENS, {"layers": 3, "heads": 2, "width": 16, "dropout": 0.2}),
}


class CrossEntropy:
    """Mean over everything but the batch, summed over samples."""

    name = "cross entropy"

    def loss(self, output: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        losses = F.cross_entropy(output.flatten(0, -2), targets["labels"].flatten(), reduction="none")
        total = losses.view(len(output), -1).mean(1).sum()
        return total, {"loss": float(total.detach()), "samples": float(len(output))}


def config(
    model: str, stages: int = 1, options: dict[str, Any] | None = None, precision: str = "fp32", **optimizer: Any
) -> RunConfig:
    """A run of that model with small options."""
    chosen = MODELS[model][1] if options is None else options
    section = {"name": model, "stages": stages, "options": chosen}
    return RunConfig.model_validate({"model": section, "optimizer": optimizer, "train": {"precision": precision}})


def stages(
    model: str, number: int, options: dict[str, Any] | None = None, precision: str = "fp32", **optimizer: Any
) -> list[Stage]:
    """All stages of a run, each built alone."""
    run = config(model, number, options, precision, **optimizer)
    return chain(run, MODELS[model][0])


def chain(run: RunConfig, shape: DataShape) -> list[Stage]:
    """All stages of that run, each built alone."""
    return [build_stage(run, shape, index, CrossEntropy(), CPU) for index in range(run.model.stages)]


def batch(shape: DataShape, seed: int, samples: int = SAMPLES * MICROBATCHES) -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    numbers = torch.Generator().manual_seed(seed)
    if shape.kind == "image":
        inputs = torch.randn((samples, *shape.inputs), generator=numbers)
        return inputs, torch.randint(shape.classes, (samples,), generator=numbers)
    inputs = torch.randint(shape.classes, (samples, *shape.inputs), generator=numbers)
    return inputs, torch.randint(shape.classes, inputs.shape, generator=numbers)


def microbatches(inputs: Tensor, labels: Tensor, number: int = MICROBATCHES) -> list[tuple[Tensor, Tensor]]:
    """A batch in equal parts."""
    return list(zip(inputs.chunk(number), labels.chunk(number), strict=True))


def wire(tensor: Tensor) -> Tensor:
    """What the other side of a connection decodes: a row-major copy."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


class Drive:
    """Steps through a chain on agreed terms, all forwards of a step before its first backward."""

    def __init__(self, chain: Sequence[Stage], scale: LossScale | None = None, budget: int = 1 << 30) -> None:
        self.chain = chain
        self.training = chain[0].training
        self.scale = scale or first_scale(self.training.precision)
        self.budget = budget
        self.samples = 0
        self.factors: list[float] = []  # Of the steps so far.

    def step(self, step: int, inputs: Tensor, labels: Tensor, number: int = MICROBATCHES) -> float:
        """One step; the batch's mean loss."""
        loss = self.compute(step, inputs, labels, number)
        self.conclude(step)
        self.samples += len(inputs)
        return loss

    def conclude(self, step: int) -> None:
        """Agree on the step and commit it."""
        squares = [square for stage in self.chain for square in stage.square_norms(step)]
        verdict = decide(squares, self.training.optimizer, self.training.precision, self.scale)
        terms = Terms(self.samples / self.budget, verdict.factor)
        for stage in self.chain:
            assert stage.commit(step, terms)
        self.scale = verdict.scale
        self.factors.append(verdict.factor)

    def compute(self, step: int, inputs: Tensor, labels: Tensor, number: int = MICROBATCHES) -> float:
        """Forwards, losses and backwards of a step."""
        self.chain[-1].loss_scale = self.scale.value
        parts = microbatches(inputs, labels, number)
        lender, borrower = self.chain[0].tie, self.chain[-1].tie
        if lender.travels:
            borrower.borrow(wire(lender.lend()))
        hidden = [part for part, _ in parts]
        for stage in self.chain[:-1]:
            hidden = [wire(stage.forward(MicrobatchId(step, index), part)) for index, part in enumerate(hidden)]
        results = [
            self.chain[-1].loss(MicrobatchId(step, index), part, {"labels": target}, len(inputs))
            for index, (part, (_, target)) in enumerate(zip(hidden, parts, strict=True))
        ]
        for index, result in enumerate(results):
            gradient = result.gradient
            for stage in reversed(self.chain[:-1]):
                assert gradient is not None
                gradient = stage.backward(MicrobatchId(step, index), wire(gradient))
            assert gradient is None
        if lender.travels:
            lender.take_back(wire(borrower.give_back()), self.training.precision == "fp16")
        return sum(result.sums["loss"] for result in results) / len(inputs)


def train_step(chain: Sequence[Stage], step: int, inputs: Tensor, labels: Tensor, number: int = MICROBATCHES) -> float:
    """One step through the chain; the batch's mean loss."""
    return Drive(chain).step(step, inputs, labels, number)


def train(chain: Sequence[Stage], shape: DataShape, steps: int, scale: LossScale | None = None) -> list[float]:
    """Losses of so many steps, each on a batch of its own."""
    drive = Drive(chain, scale)
    return [drive.step(step, *batch(shape, step)) for step in range(1, steps + 1)]


def tensors(chain: Sequence[Stage]) -> dict[str, Tensor]:
    """Parameters and running statistics of all stages, by their names in the uncut model."""
    found = {}
    for stage in chain:
        pieces = torch.split(stage.flatten(), [slot.size for slot in stage.layout])
        found.update({slot.name: piece.view(slot.shape) for slot, piece in zip(stage.layout, pieces, strict=True)})
    return found
