"""Between two blocks everything looks as if it had come over the wire, so a cut there cannot choose other kernels.

A kernel may add in another order when strides or alignment differ. What the wire delivers is row-major and starts at
an aligned address; the functions here bring what stays within a process into the same form, which rarely costs a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64
"""Bytes to which torch aligns what it allocates on the CPU."""

Customs = Callable[[Tensor], Tensor]
"""What a tensor has to go through at a boundary; not differentiated."""


def cross(hidden: Tensor, dtype: torch.dtype = torch.float32, customs: Customs | None = None) -> Tensor:
    """What one block hands to the next: canonical and of that type going forward, and so its gradient coming back.

    Both go through `customs`, where there are any.
    """
    hidden = canonical(hidden.to(dtype))
    if customs is not None:
        hidden = _Gate.apply(hidden, customs)  # type: ignore[no-untyped-call]
    if hidden.requires_grad:
        hidden.register_hook(canonical)  # type: ignore[no-untyped-call]
    return hidden


def enter(hidden: Tensor, customs: Customs | None = None) -> Tensor:
    """What came from another stage, as a leaf whose gradient goes back there as `cross` would hand it back."""
    leaf = canonical(hidden.detach()).requires_grad_()
    if customs is not None:
        leaf.register_hook(customs)  # type: ignore[no-untyped-call]
    return leaf


def canonical(tensor: Tensor) -> Tensor:
    """The same numbers, row-major and aligned; the tensor itself where it is so already. Keeps the graph."""
    if tensor.stride() == _row_major(tensor.shape) and tensor.data_ptr() % _ALIGNMENT == 0:
        return tensor
    return tensor.flatten().clone().view(tensor.shape)


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


class _Gate(torch.autograd.Function):
    """The customs, both ways."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, customs: Customs) -> Tensor:
        context.customs = customs
        return customs(hidden)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.customs(gradient), None
