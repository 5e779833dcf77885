"""Between two blocks everything looks as if it had come over the wire, so a cut there cannot choose other kernels.

A kernel may add in another order when strides or alignment differ. What the wire delivers is row-major and starts at
an aligned address; the functions here bring what stays within a process into the same form, which rarely costs a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_ALIGNMENT = 64
"""Bytes to which torch aligns what it allocates on the CPU."""


def cross(hidden: Tensor) -> Tensor:
    """What one block hands to the next: canonical going forward, and its gradient canonical coming back."""
    hidden = canonical(hidden)
    if hidden.requires_grad:
        hidden.register_hook(canonical)  # type: ignore[no-untyped-call]
    return hidden


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
