from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.model.zoo.families import riders
from distqat.wire import codecs


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


@pytest.mark.parametrize("codec", sorted({*codecs.names()} - {"int2"}))
@pytest.mark.parametrize("loudest", [0.0, 1e-3, 1.0, 300.0, 6e4])
@pytest.mark.parametrize("width", [riders.BITS, 40, 64, 100, 512])
def test_no_codec_loses_a_length(codec: str, loudest: float, width: int) -> None:
    """Though blocks of int8 are of 256 elements, and hold frames of several samples where these are narrow."""
    lengths = torch.tensor([0, 1, 777, 65535])
    sent = riders.put_on(torch.full((4, 5, width), loudest), lengths)
    wire = codecs.find(codec)
    received = wire.decode(wire.encode(sent), sent.dtype, tuple(sent.shape), torch.device("cpu"))
    assert riders.take_off(received)[1].tolist() == lengths.tolist()


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_spoil_no_length_and_are_not_hidden(spoilt: float) -> None:
    hidden = torch.zeros(2, 3, 20)
    hidden[0, 1, 2] = spoilt
    alone, found = riders.take_off(riders.put_on(hidden, torch.tensor([3, 1])))
    assert found.tolist() == [3, 1]
    torch.testing.assert_close(alone, hidden, rtol=0, atol=0, equal_nan=True)


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
