"""The gradients of a step, summed up over its microbatches and not applied yet."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn


def square_norms(blocks: Sequence[nn.Module], overflowed: Collection[int]) -> tuple[float, ...]:
    """The squared norm of each block's gradients; infinite for the blocks that met an overflow.

    Above the single tensor sums are exact, so whoever adds up those of all stages gets what the uncut model has.
    """
    owners: list[int] = []
    norms: list[torch.Tensor] = []
    for number, block in enumerate(blocks):
        for parameter in block.parameters():
            if parameter.grad is not None:
                owners.append(number)
                norms.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float64))
    # One transfer for all, since each would wait for the device.
    values = torch.stack(norms).tolist() if norms else []
    squares: list[list[float]] = [[math.inf] if number in overflowed else [] for number in range(len(blocks))]
    for number, value in zip(owners, values, strict=True):
        squares[number].append(value * value)
    return tuple(math.fsum(own) for own in squares)


@torch.no_grad()
def multiply(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients, in place."""
    if factor == 1.0:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def clear(parameters: Iterable[nn.Parameter]) -> None:
    """Forget all gradients."""
    for parameter in parameters:
        parameter.grad = None
