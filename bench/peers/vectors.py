"""The vectors that a round averages. Every process can make anybody's, so what came out can be checked anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 1 << 20
"""Elements that are made at once: 4 MiB."""


def vector(seed: int, elements: int) -> Tensor:
    """Normal numbers [elements], the same for the same seed."""
    made = torch.empty(elements)
    for begin, piece in _pieces(seed, elements):
        made[begin : begin + len(piece)] = piece
    return made


def error(average: Tensor, seeds: Sequence[int]) -> float:
    """Relative L2 distance from the mean of the vectors of these seeds, in fp64; whole vectors are never held."""
    wrong = right = 0.0
    for row in zip(*(_pieces(seed, len(average)) for seed in seeds), strict=True):
        begin = row[0][0]
        mean = torch.zeros(len(row[0][1]), dtype=torch.float64)
        for _, piece in row:
            mean += piece
        mean /= len(seeds)
        away = average[begin : begin + len(mean)].double() - mean
        wrong += float(away.square().sum())
        right += float(mean.square().sum())
    return float((wrong / right) ** 0.5)


def _pieces(seed: int, elements: int) -> Iterator[tuple[int, Tensor]]:
    numbers = torch.Generator().manual_seed(seed)
    for begin in range(0, elements, PIECE):
        yield begin, torch.randn(min(PIECE, elements - begin), generator=numbers)
