from __future__ import annotations

import pytest
import torch

from distqat.errors import ConfigError, MessageError
from distqat.wire import codecs
from distqat.wire.tensors import DTYPES

NONE = codecs.find("none")

LAYOUTS = {
    "plain": lambda values: values,
    "empty": lambda values: values[:0],
    "no dimension": lambda values: values[0, 0, 0],
    "one element": lambda values: values[:1, :1, :1],
    "transposed": lambda values: values.transpose(0, 2),
    "every other": lambda values: values[:, ::2],
    "repeated": lambda values: values[:1].expand(5, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", DTYPES)
def test_none_is_exact(name: str, layout: str) -> None:
    dtype = DTYPES[name]
    tensor = LAYOUTS[layout](torch.arange(60).remainder(120).reshape(3, 4, 5).to(dtype))
    data = NONE.encode(tensor)
    assert data.nbytes == len(data) == NONE.size(tensor.numel(), dtype)
    back = NONE.decode(memoryview(bytes(data)), dtype, tuple(tensor.shape))
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_every_float_survives() -> None:
    numbers = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-45, 3.4e38])
    assert bytes(NONE.encode(numbers)) == bytes(NONE.encode(NONE.decode(NONE.encode(numbers), torch.float32, (6,))))
    assert NONE.decode(NONE.encode(torch.tensor([float("nan")])), torch.float32, (1,)).isnan().all()


def test_a_tensor_that_needs_a_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert bytes(NONE.encode(weight)) == bytes(NONE.encode(torch.ones(3)))


def test_nothing_is_copied_when_the_layout_allows() -> None:
    tensor = torch.zeros(4)
    data = NONE.encode(tensor)
    tensor[0] = 1.0
    assert bytes(data[:4]) == bytes(NONE.encode(torch.ones(1)))


def test_what_is_decoded_can_be_written_to() -> None:
    message = bytes(NONE.encode(torch.zeros(3)))
    decoded = NONE.decode(memoryview(message), torch.float32, (3,))
    decoded += 1
    assert message == bytes(12)


@pytest.mark.parametrize("shape", [(), (2,), (4,), (1 << 40,), (1 << 60, 1 << 60)])
def test_a_length_that_does_not_fit_is_refused_before_anything_is_allocated(shape: tuple[int, ...]) -> None:
    with pytest.raises(MessageError, match="12 bytes for a"):
        NONE.decode(memoryview(bytes(12)), torch.float32, shape)


def test_names() -> None:
    assert codecs.names() == ["none"]
    with pytest.raises(ConfigError, match="unknown codec 'int3'; there are: none"):
        codecs.find("int3")
