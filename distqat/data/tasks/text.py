"""Task llm. Shapes: B samples, T tokens, C classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from distqat.data import metrics
from distqat.data.tasks.labels import labels_of, num_bytes_of


class LanguageTask:
    """Predict the next token: cross entropy of outputs [B, T, C] against labels int64 [B, T], the mean over T."""

    name = "llm"
    metric_name = metrics.METRICS["llm"]

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Sum over samples of the mean over tokens, and "loss", "correct", "tokens", "samples"; "bytes" if the targets
        say how many the tokens of each sample are. Raises TensorError."""
        labels = labels_of(targets, output, 3)
        tokens = F.cross_entropy(output.flatten(0, 1), labels.flatten(), reduction="none")
        loss = tokens.view_as(labels).mean(1).sum()
        correct = (output.detach().argmax(-1) == labels).sum()
        sums = {
            "loss": float(loss.detach()),
            "correct": float(correct),
            "tokens": float(labels.numel()),
            "samples": float(len(labels)),
        }
        if (num_bytes := num_bytes_of(targets, labels)) is not None:
            sums["bytes"] = num_bytes
        return loss, sums

    def evaluation(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss, accuracy per token, perplexity, bits per byte."""
        return metrics.evaluation(self.name, sums)
