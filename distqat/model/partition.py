"""Blocks to stages. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from distqat.errors import ModelError


def cut(costs: Sequence[float], stages: int, cuts: Sequence[int] = ()) -> list[range]:
    """The blocks of each stage: contiguous, none empty, all blocks used.

    With `cuts`, stage i begins at block `cuts[i - 1]`. Without, the most expensive stage is as cheap as possible, and
    among such cuts the squared costs of the stages have the smallest sum, so the rest is even too.
    Raises ModelError when there are fewer blocks than stages or the cut points do not fit.
    """
    if stages < 1:
        raise ModelError(f"a model cannot be cut into {stages} stages; write at least 1")
    if stages > len(costs):
        raise ModelError(f"the model has {len(costs)} blocks, so it cannot be cut into {stages} stages")
    if cuts:
        return _explicit(len(costs), stages, cuts)
    if not all(math.isfinite(cost) and cost >= 0 for cost in costs):
        raise ModelError(f"costs of blocks must be finite and not negative, got {list(costs)}")
    sums = [0.0, *accumulate(costs)]
    largest = _best(sums, stages)
    return _even(sums, stages, largest)


def _explicit(blocks: int, stages: int, cuts: Sequence[int]) -> list[range]:
    edges = [0, *cuts, blocks]
    if len(cuts) != stages - 1 or any(left >= right for left, right in pairwise(edges)):
        raise ModelError(
            f"cuts {list(cuts)} do not fit: {stages} stages of a model of {blocks} blocks take "
            f"{stages - 1} growing cut points between 1 and {blocks - 1}"
        )
    return [range(left, right) for left, right in pairwise(edges)]


def _best(sums: Sequence[float], stages: int) -> float:
    """The cost of the most expensive stage in the best cut; `sums[i]` is the cost of the first i blocks."""
    blocks = len(sums) - 1
    best = list(sums)  # best[end]: for the blocks before `end`, in as many stages as the loop has reached.
    best[0] = math.inf
    for stage in range(2, stages + 1):
        best = [
            min((max(best[begin], sums[end] - sums[begin]) for begin in range(stage - 1, end)), default=math.inf)
            for end in range(blocks + 1)
        ]
    return best[blocks]


def _even(sums: Sequence[float], stages: int, largest: float) -> list[range]:
    """The cut with the smallest sum of squares in which no stage costs more than `largest`."""
    blocks = len(sums) - 1
    best = [0.0] + [math.inf] * blocks
    begins: list[list[int]] = []  # begins[stage][end]: where that stage begins if it ends there.
    for _ in range(stages):
        row, origin = [math.inf] * (blocks + 1), [0] * (blocks + 1)
        for end in range(1, blocks + 1):
            for begin in range(end):
                cost = sums[end] - sums[begin]
                if cost <= largest and best[begin] + cost * cost < row[end]:
                    row[end], origin[end] = best[begin] + cost * cost, begin
        best = row
        begins.append(origin)
    ranges: list[range] = []
    end = blocks
    for origin in reversed(begins):
        ranges.append(range(origin[end], end))
        end = origin[end]
    return ranges[::-1]
