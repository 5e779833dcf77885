"""Small runs for the tests of this room: a task, data, and a pipeline that is chained by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distqat.config import RunConfig
from distqat.ids import MicrobatchId
from distqat.model.build import build_stage
from distqat.model.shapes import DataShape
from distqat.model.stage import Stage

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


def config(model: str, stages: int = 1, options: dict[str, Any] | None = None, **optimizer: Any) -> RunConfig:
    """A run of that model with small options."""
    chosen = MODELS[model][1] if options is None else options
    section = {"name": model, "stages": stages, "options": chosen}
    return RunConfig.model_validate({"model": section, "optimizer": optimizer})


def stages(model: str, number: int, options: dict[str, Any] | None = None, **optimizer: Any) -> list[Stage]:
    """All stages of a run, each built alone."""
    run = config(model, number, options, **optimizer)
    return [build_stage(run, MODELS[model][0], index, CrossEntropy()) for index in range(number)]


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


def train_step(chain: Sequence[Stage], step: int, inputs: Tensor, labels: Tensor, number: int = MICROBATCHES) -> float:
    """One step through the chain, all forwards before the first backward; the batch's mean loss."""
    parts = microbatches(inputs, labels, number)
    hidden = [part for part, _ in parts]
    for stage in chain[:-1]:
        hidden = [wire(stage.forward(MicrobatchId(step, index), part)) for index, part in enumerate(hidden)]
    results = [
        chain[-1].loss(MicrobatchId(step, index), part, {"labels": target}, len(inputs))
        for index, (part, (_, target)) in enumerate(zip(hidden, parts, strict=True))
    ]
    for index, result in enumerate(results):
        gradient = result.gradient
        for stage in reversed(chain[:-1]):
            assert gradient is not None
            gradient = stage.backward(MicrobatchId(step, index), wire(gradient))
        assert gradient is None
    for stage in chain:
        assert stage.commit(step)
    return sum(result.sums["loss"] for result in results) / len(inputs)


def train(chain: Sequence[Stage], shape: DataShape, steps: int) -> list[float]:
    """Losses of so many steps, each on a batch of its own."""
    return [train_step(chain, step, *batch(shape, step)) for step in range(1, steps + 1)]


def tensors(chain: Sequence[Stage]) -> dict[str, Tensor]:
    """Parameters and running statistics of all stages, by their names in the uncut model."""
    return {name: tensor for stage in chain for name, tensor in stage.named_tensors().items()}
