"""The weighted mean of one part of a slice, the same bits wherever it is computed.

sum_i w_i x_i in fp32, taken in the order of the members, each product and each sum rounded by itself. The weight of a
member is its samples over the samples of all contributors, divided in fp64 and then rounded to fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distqat.errors import TensorError


def weights(samples: Sequence[int]) -> list[torch.Tensor]:
    """The fp32 weight [] of every contributor."""
    total = sum(samples)
    return [torch.tensor(count / total, dtype=torch.float32) for count in samples]


def weighted_mean(parts: Sequence[torch.Tensor], by: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of equally long fp32 parts, in their order; a new tensor."""
    mean = parts[0] * by[0]
    for part, weight in zip(parts[1:], by[1:], strict=True):
        mean = mean + part * weight
    return mean


def check_finite(part: torch.Tensor, whose: str) -> None:
    """Raise TensorError naming the contributor if there is NaN or infinity in its part."""
    if not bool(torch.isfinite(part).all()):
        raise TensorError(f"the contribution of {whose} holds NaN or infinity")
