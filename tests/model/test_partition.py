from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import ModelError
from distqat.model.partition import cut


def every_cut(blocks: int, stages: int) -> list[list[range]]:
    """The oracle: all of them."""
    edges = [[0, *inner, blocks] for inner in combinations(range(1, blocks), stages - 1)]
    return [[range(left, right) for left, right in zip(edge, edge[1:], strict=False)] for edge in edges]  # noqa: RUF007


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_no_cut_is_better(costs: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))

    def worth(ranges: list[range]) -> tuple[int, int]:
        sums = [sum(costs[block] for block in own) for own in ranges]
        return max(sums), sum(cost * cost for cost in sums)

    found = cut(costs, stages)
    assert found in every_cut(len(costs), stages)
    assert worth(found) == min(worth(ranges) for ranges in every_cut(len(costs), stages))


def test_explicit_cuts() -> None:
    assert cut([9, 1, 1, 1], 3, [2, 3]) == [range(2), range(2, 3), range(3, 4)]


@pytest.mark.parametrize("cuts", [[2], [2, 2], [3, 1], [0, 2], [2, 4], [1, 2, 3]])
def test_cuts_that_do_not_fit(cuts: list[int]) -> None:
    with pytest.raises(ModelError, match="2 growing cut points between 1 and 3"):
        cut([1.0] * 4, 3, cuts)


def test_more_stages_than_blocks() -> None:
    with pytest.raises(ModelError, match="4 blocks, so it cannot be cut into 5"):
        cut([1.0] * 4, 5)
    with pytest.raises(ModelError, match="at least 1"):
        cut([1.0], 0)


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0])
def test_costs_that_make_no_sense(cost: float) -> None:
    with pytest.raises(ModelError, match="finite"):
        cut([1.0, cost], 2)
