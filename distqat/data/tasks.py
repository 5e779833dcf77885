"""What the outputs of a model are worth: the loss that is trained on, and sums for the evaluation.

Shapes: B samples, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from distqat.data import metrics
from distqat.errors import DataError, TensorError

TARGET = "labels"
"""Name of the target of both tasks."""


class ImageTask:
    """Classify images: cross entropy of outputs [B, C] against labels int64 [B]."""

    name = "cv"
    metric_name = metrics.METRICS["cv"]

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Sum over samples of the cross entropy, and "loss", "correct", "samples". Raises TensorError."""
        labels = _labels(targets, output, 2)
        loss = F.cross_entropy(output, labels, reduction="sum")
        correct = (output.detach().argmax(-1) == labels).sum()
        return loss, {"loss": float(loss.detach()), "correct": float(correct), "samples": float(len(labels))}

    def evaluation(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss and accuracy."""
        return metrics.evaluation(self.name, sums)


class LanguageTask:
    """Predict the next token: cross entropy of outputs [B, T, C] against labels int64 [B, T], the mean over T."""

    name = "llm"
    metric_name = metrics.METRICS["llm"]

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Sum over samples of the mean over tokens, and "loss", "correct", "tokens", "samples". Raises TensorError."""
        labels = _labels(targets, output, 3)
        tokens = F.cross_entropy(output.flatten(0, 1), labels.flatten(), reduction="none")
        loss = tokens.view_as(labels).mean(1).sum()
        correct = (output.detach().argmax(-1) == labels).sum()
        return loss, {
            "loss": float(loss.detach()),
            "correct": float(correct),
            "tokens": float(labels.numel()),
            "samples": float(len(labels)),
        }

    def evaluation(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss, accuracy per token, perplexity, bits per byte."""
        return metrics.evaluation(self.name, sums)


AnyTask = ImageTask | LanguageTask

_TASKS: Mapping[str, AnyTask] = {task.name: task for task in (ImageTask(), LanguageTask())}


def find_task(name: str) -> AnyTask:
    """The task of that name. Raises DataError."""
    try:
        return _TASKS[name]
    except KeyError:
        raise DataError(f"unknown task '{name}'; there are: {', '.join(sorted(_TASKS))}") from None


def _labels(targets: Mapping[str, Tensor], output: Tensor, dimensions: int) -> Tensor:
    """The labels, checked against the outputs before anything is computed."""
    if output.dim() != dimensions:
        raise TensorError(f"outputs must have {dimensions} dimensions, got shape {list(output.shape)}")
    labels = targets.get(TARGET)
    if labels is None:
        raise TensorError(f"the target '{TARGET}' is missing; there are: {', '.join(targets) or 'none'}")
    if labels.dtype != torch.int64 or labels.shape != output.shape[:-1] or not labels.numel():
        raise TensorError(
            f"labels must be int64 of shape {list(output.shape[:-1])}, got {labels.dtype} of {list(labels.shape)}"
        )
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= output.shape[-1]:
        raise TensorError(f"labels must lie in 0 to {output.shape[-1] - 1}, got {low} to {high}")
    return labels
