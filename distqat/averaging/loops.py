"""The passes of a round over a block, each one visit to memory; every operation is one of fp32, rounded by itself."""

from __future__ import annotations

import numpy as np

from distqat.compiled import FLOAT, FLOATS, READ_FLOATS, compiled
from distqat.wire.codecs.codec import Floats

LANES = 64
"""Squares are summed side by side in fp32, and one row behind the other in fp64."""
ROW = 4096


@compiled(READ_FLOATS, READ_FLOATS, READ_FLOATS, FLOAT, FLOAT, FLOATS, FLOATS)
def nesterov(
    theta: Floats, momentum: Floats, mean: Floats, mu: float, rate: float, next_theta: Floats, next_momentum: Floats
) -> None:
    """m' <- mu m + d;  theta' <- theta - rate (d + mu m'). All have the same length."""
    for at in range(len(theta)):
        moved = momentum[at] * mu + mean[at]
        next_momentum[at] = moved
        next_theta[at] = theta[at] - (mean[at] + moved * mu) * rate


@compiled(READ_FLOATS, READ_FLOATS)
def squares_of_difference(first: Floats, second: Floats) -> float:
    """The sum of (first - second)^2. NaN or infinite if a number is, or if some are beyond all measure of fp32."""
    total = 0.0
    lanes = np.empty(LANES, np.float32)
    for row in range(0, len(first), ROW):
        one, other = first[row : row + ROW], second[row : row + ROW]
        whole = len(one) - len(one) % LANES
        lanes[:] = 0.0
        for begin in range(0, whole, LANES):
            left, right = one[begin : begin + LANES], other[begin : begin + LANES]
            for lane in range(LANES):
                moved = left[lane] - right[lane]
                lanes[lane] += moved * moved
        for at in range(whole, len(one)):
            moved = one[at] - other[at]
            lanes[at - whole] += moved * moved
        for lane in range(LANES):
            total += np.float64(lanes[lane])
    return total
