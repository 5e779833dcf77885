from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import reduce
from distqat.errors import TensorError

NUMBERS = st.floats(-1e4, 1e4, width=32)


@st.composite
def contributions(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    members, length = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    parts = [draw(st.lists(NUMBERS, min_size=length, max_size=length)) for _ in range(members)]
    return parts, draw(st.lists(st.integers(1, 10_000), min_size=members, max_size=members))


@given(contributions())
def test_against_the_naive_average(case: tuple[list[list[float]], list[int]]) -> None:
    parts, samples = case
    mean = reduce.weighted_mean([torch.tensor(part) for part in parts], reduce.weights(samples))
    for position, got in enumerate(mean.tolist()):
        naive = sum(part[position] * count for part, count in zip(parts, samples, strict=True)) / sum(samples)
        largest = max(abs(part[position]) for part in parts)
        assert got == pytest.approx(naive, rel=0, abs=1e-6 * max(largest, 1e-30) * len(parts))


@given(contributions(), st.integers(1, 8))
def test_any_cut_gives_the_same_bits(case: tuple[list[list[float]], list[int]], at: int) -> None:
    parts, samples = case
    tensors, weights = [torch.tensor(part) for part in parts], reduce.weights(samples)
    whole = reduce.weighted_mean(tensors, weights)
    left = reduce.weighted_mean([tensor[:at] for tensor in tensors], weights)
    right = reduce.weighted_mean([tensor[at:] for tensor in tensors], weights)
    assert torch.equal(torch.cat((left, right)), whole)


@given(st.lists(NUMBERS, min_size=1, max_size=9), st.integers(1, 1000))
def test_one_contributor_is_taken_bit_for_bit(part: list[float], samples: int) -> None:
    tensor = torch.tensor(part)
    mean = reduce.weighted_mean([tensor], reduce.weights([samples]))
    assert mean.numpy().tobytes() == tensor.numpy().tobytes()


def test_weights_are_rounded_once_from_double() -> None:
    third = reduce.weights([1, 2])[0]
    assert third.dtype == torch.float32
    assert third.item() == torch.tensor(1 / 3, dtype=torch.float64).float().item()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    with pytest.raises(TensorError, match="alice"):
        reduce.check_finite(torch.tensor([0.0, bad]), "alice")
    reduce.check_finite(torch.tensor([0.0, 1e38]), "alice")
