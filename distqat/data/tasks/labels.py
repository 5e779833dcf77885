"""The target of every task, checked against the outputs before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distqat.errors import TensorError

TARGET = "labels"
"""Name of the target that all tasks have."""


def labels_of(targets: Mapping[str, Tensor], output: Tensor, dimensions: int) -> Tensor:
    """Labels int64, one for each score vector along the last dimension of the outputs. Raises TensorError."""
    labels = _target(targets, output, dimensions)
    _expect_shape(labels, output.shape[:-1])
    _expect_range(labels, 0, output.shape[-1] - 1)
    return labels


def padded_labels_of(targets: Mapping[str, Tensor], output: Tensor, padding: int) -> Tensor:
    """Labels int64 [B, L] for outputs [B, T, C]: from 1 on, and behind the last one `padding`. Raises TensorError."""
    labels = _target(targets, output, 3)
    width = labels.shape[1] if labels.dim() == 2 else 1
    _expect_shape(labels, (output.shape[0], width))
    if bool((labels[:, 1:] != padding).logical_and(labels[:, :-1] == padding).any()):
        raise TensorError(f"labels go on behind {padding}, which ends them")
    _expect_range(labels[labels != padding], 1, output.shape[-1] - 1)
    return labels


def num_bytes_of(targets: Mapping[str, Tensor], labels: Tensor) -> float | None:
    """How many bytes of text the labels [B, T] are, if the target "bytes" [B] says it. Raises TensorError."""
    sizes = targets.get("bytes")
    if sizes is None:
        return None
    total = float(sizes.sum(dtype=torch.float64))
    if list(sizes.shape) != [len(labels)] or not 0 < total < math.inf:
        raise TensorError(f"bytes must be {len(labels)} numbers above 0, got {list(sizes.shape)} of {total} in all")
    return total


def _target(targets: Mapping[str, Tensor], output: Tensor, dimensions: int) -> Tensor:
    if output.dim() != dimensions:
        raise TensorError(f"outputs must have {dimensions} dimensions, got shape {list(output.shape)}")
    labels = targets.get(TARGET)
    if labels is None:
        raise TensorError(f"the target '{TARGET}' is missing; there are: {', '.join(targets) or 'none'}")
    return labels


def _expect_shape(labels: Tensor, shape: Sequence[int]) -> None:
    if labels.dtype != torch.int64 or list(labels.shape) != list(shape) or not labels.numel():
        raise TensorError(f"labels must be int64 of shape {list(shape)}, got {labels.dtype} of {list(labels.shape)}")


def _expect_range(labels: Tensor, least: int, most: int) -> None:
    if not labels.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < least or high > most:
        raise TensorError(f"labels must lie in {least} to {most}, got {low} to {high}")
