"""What the model is to learn, as the last stage sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distqat.errors import TensorError


class Task(Protocol):
    """A loss; implemented in `data`."""

    @property
    def name(self) -> str:
        """Its name, such as "cv"."""
        ...

    def loss(self, output: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The sum over samples of each sample's mean loss (a scalar with a graph), and sums of metrics."""
        ...


@dataclass(frozen=True)
class LossResult:
    """What the last stage says of a microbatch."""

    sums: dict[str, float]
    """Sums over the microbatch's samples, such as "loss", "correct", "samples"; never scaled."""
    gradient: Tensor | None
    """By the stage's input; None when the stage is also the first, or when it does not train."""


def score(task: Task, stage: str, output: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """The task's loss and sums, computed in fp32 where the output of that stage is.

    Raises TensorError when the targets do not fit, or when the loss is NaN or infinite.
    """
    placed = {name: target.to(output.device) for name, target in targets.items()}
    try:
        total, sums = task.loss(output.float(), placed)
    except (KeyError, IndexError, ValueError) as error:
        raise TensorError(f"the targets do not fit task {task.name}: {error}") from None
    if not bool(torch.isfinite(total)):
        raise TensorError(f"the loss in stage {stage} is {float(total.detach())}; the microbatch is refused")
    return total, sums
