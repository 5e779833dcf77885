"""Tensors of a stage to one flat vector on the CPU and back, each element copied once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from distqat.wire.codecs.memory import empty


def read(tensors: Sequence[Tensor]) -> Tensor:
    """A new fp32 vector on the CPU with the elements of these tensors, one behind the other.

    Memory for what comes from a CUDA device is pinned, so that all copies go out at once and are waited for once.
    """
    elements = sum(tensor.numel() for tensor in tensors)
    device = tensors[0].device
    if device.type != "cuda":
        vector = empty((elements,), torch.float32)
        for tensor, part in _parts(tensors, vector):
            part.copy_(tensor.detach())
        return vector
    vector = torch.empty(elements, dtype=torch.float32, pin_memory=True)
    for tensor, part in _parts(tensors, vector):
        part.copy_(tensor.detach(), non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return vector


def write(tensors: Sequence[Tensor], vector: Tensor) -> None:
    """The elements of the vector into these tensors; it must be as long as they are together."""
    with torch.no_grad():
        for tensor, part in _parts(tensors, vector):
            tensor.copy_(part)


def _parts(tensors: Sequence[Tensor], vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    begin = 0
    for tensor in tensors:
        yield tensor, vector[begin : begin + tensor.numel()].view(tensor.shape)
        begin += tensor.numel()
