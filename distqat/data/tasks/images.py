"""Task cv. Shapes: B samples, C classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from distqat.data import metrics
from distqat.data.tasks.labels import labels_of


class ImageTask:
    """Classify images: cross entropy of outputs [B, C] against labels int64 [B]."""

    name = "cv"
    metric_name = metrics.METRICS["cv"]

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Sum over samples of the cross entropy, and "loss", "correct", "samples". Raises TensorError."""
        labels = labels_of(targets, output, 2)
        loss = F.cross_entropy(output, labels, reduction="sum")
        correct = (output.detach().argmax(-1) == labels).sum()
        return loss, {"loss": float(loss.detach()), "correct": float(correct), "samples": float(len(labels))}

    def evaluation(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss and accuracy."""
        return metrics.evaluation(self.name, sums)
