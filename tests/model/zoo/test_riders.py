from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.model.zoo.families import riders


@given(
    st.lists(st.integers(0, (1 << riders.BITS) - 1), min_size=1, max_size=5),
    st.integers(riders.BITS, 50),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_lengths_come_off_as_they_were_put_on(lengths: list[int], width: int, dtype: torch.dtype) -> None:
    hidden = torch.randn(len(lengths), 3, width).to(dtype)
    ridden = riders.put_on(hidden, torch.tensor(lengths))
    assert ridden.shape == (len(lengths), 4, width)
    assert ridden.dtype == dtype
    alone, found = riders.take_off(ridden)
    assert found.tolist() == lengths
    assert torch.equal(alone, hidden)
    assert alone.is_contiguous()


@pytest.mark.parametrize("loudest", [1.0, 300.0, 1e4])
def test_a_coarse_wire_loses_no_length(loudest: float) -> None:
    """What eight bits for each 64 elements make of it, where the numbers beside are much larger."""
    lengths = torch.tensor([0, 1, 777, 65535])
    ridden = riders.put_on(torch.full((4, 5, 64), loudest), lengths)
    blocks = ridden.reshape(-1, 64)
    steps = blocks.abs().amax(1, keepdim=True) / 127
    assert riders.take_off(((blocks / steps).round() * steps).view_as(ridden))[1].tolist() == lengths.tolist()


def test_gradients_come_back_as_if_no_length_had_ridden() -> None:
    leaf = torch.randn(2, 3, 16, requires_grad=True)
    seen: list[torch.Tensor] = []
    hidden = leaf * 1.0
    ridden = riders.put_on(hidden, torch.tensor([3, 1]))
    hidden.register_hook(seen.append)  # type: ignore[no-untyped-call]
    alone, _ = riders.take_off(ridden)
    weights = torch.randn(2, 3, 16)
    torch.autograd.backward((alone * weights).sum())
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, weights)
    assert seen[0].is_contiguous()
