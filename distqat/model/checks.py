"""Whether a tensor that came from another peer is what was expected; looked at before anything is touched.

Every function raises TensorError, which says what was expected and what came.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distqat.errors import TensorError
from distqat.model.zoo.blocks import HiddenShape


def expect(what: str, tensor: Tensor, shape: HiddenShape) -> None:
    """Type, rank and shape except the batch dimension, at least one sample, and sane elements."""
    if tensor.dtype != shape.dtype or tuple(tensor.shape[1:]) != shape.shape or tensor.dim() == 0 or not len(tensor):
        raise TensorError(f"{what}: expected {shape}, got {_describe(tensor)}")
    if shape.below is None:
        _expect_finite(what, tensor)
        return
    low, high = (int(bound) for bound in torch.aminmax(tensor))
    if low < 0 or high >= shape.below:
        raise TensorError(f"{what}: expected elements from 0 to {shape.below - 1}, got {low} to {high}")


def expect_like(what: str, tensor: Tensor, model: Tensor, may_overflow: bool = False) -> None:
    """Type and shape of another tensor, and finite unless an overflow is no fault."""
    if tensor.dtype != model.dtype or tensor.shape != model.shape:
        raise TensorError(f"{what}: expected {_describe(model)}, got {_describe(tensor)}")
    if not may_overflow:
        _expect_finite(what, tensor)


def expect_vector(what: str, vector: Tensor, elements: int) -> None:
    """A finite fp32 vector of so many elements."""
    if vector.dtype != torch.float32 or tuple(vector.shape) != (elements,):
        raise TensorError(f"{what}: expected float32 ({elements},), got {_describe(vector)}")
    _expect_finite(what, vector)


def expect_targets(targets: dict[str, Tensor], samples: int) -> None:
    """Each target has one entry for each sample."""
    for name, target in targets.items():
        if target.dim() == 0 or len(target) != samples:
            raise TensorError(f"target '{name}': expected {samples} samples, got {_describe(target)}")


def _expect_finite(what: str, tensor: Tensor) -> None:
    # The sum is finite if all elements are, unless it overflows; only then each one is looked at.
    if not bool(torch.isfinite(tensor.sum(dtype=torch.float32))) and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise TensorError(f"{what}: {bad} of {tensor.numel()} elements are NaN or infinite")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
