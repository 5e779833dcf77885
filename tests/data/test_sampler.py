from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.data.sampler import Sampler, budget, permutation
from distqat.errors import DataError


@given(st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 5))
def test_every_sample_once_per_epoch(num_samples: int, seed: int, epoch: int) -> None:
    order = Sampler(num_samples, seed).indices(epoch * num_samples, (epoch + 1) * num_samples)
    assert sorted(order) == list(range(num_samples))


@given(st.integers(1, 20), st.lists(st.integers(0, 100), min_size=2, max_size=8))
def test_any_cut_gives_the_same_order(num_samples: int, cuts: list[int]) -> None:
    sampler = Sampler(num_samples, 3)
    cuts = sorted(cuts)
    pieces = [sampler.indices(begin, end) for begin, end in pairwise(cuts)]
    assert np.array_equal(np.concatenate(pieces), sampler.indices(cuts[0], cuts[-1]))


def test_a_new_order_each_epoch_and_seed() -> None:
    orders = [permutation(100, seed, epoch).tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_the_order_never_changes_between_versions() -> None:
    # Trainers with different versions of numpy must agree, or samples would be lost and doubled.
    assert Sampler(10, 7).indices(0, 20).tolist() == [6, 3, 4, 9, 0, 2, 8, 7, 5, 1, 1, 3, 2, 7, 8, 4, 5, 9, 0, 6]


def test_the_shared_order_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        permutation(10, 7, 0)[0] = 3


def test_nothing_to_draw_from() -> None:
    with pytest.raises(DataError):
        Sampler(0, 1)


@pytest.mark.parametrize(("epochs", "expected"), [(1, 1438), (30.0, 43140), (0.1, 144), (1e-9, 1), (0.3, 432)])
def test_budget(epochs: float, expected: int) -> None:
    assert budget(epochs, 1438) == expected


def test_repr() -> None:
    assert repr(Sampler(10, 7)) == "<Sampler of 10 samples, seed 7>"
    assert Sampler(10, 7).indices(5, 5).tolist() == []
