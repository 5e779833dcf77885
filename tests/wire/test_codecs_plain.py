from __future__ import annotations

import pytest
import torch

from distqat.wire import codecs
from distqat.wire.frames import aligned
from distqat.wire.tensors import DTYPES

NONE = codecs.find("none")


@pytest.mark.parametrize("name", DTYPES)
def test_every_element_type_is_exact(name: str) -> None:
    tensor = torch.arange(60).remainder(120).reshape(3, 4, 5).to(DTYPES[name]).transpose(0, 1)
    back = NONE.decode(memoryview(bytes(NONE.encode(tensor))), tensor.dtype, tuple(tensor.shape))
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_every_float_survives() -> None:
    numbers = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-45, 3.4e38, float("nan")])
    assert bytes(NONE.encode(numbers)) == bytes(NONE.encode(NONE.decode(NONE.encode(numbers), torch.float32, (7,))))


def test_nothing_is_copied_when_a_tensor_lies_as_it_travels() -> None:
    tensor = torch.zeros(4)
    data = NONE.encode(tensor)
    tensor[0] = 1.0
    assert bytes(data[:4]) == bytes(NONE.encode(torch.ones(1)))


def test_nothing_is_copied_from_memory_that_may_be_kept() -> None:
    memory = aligned(16)
    memory[:] = bytes(16)
    tensor = NONE.decode(memory, torch.float32, (4,))
    tensor += 1
    assert bytes(memory[:4]) == bytes(NONE.encode(torch.ones(1)))


def test_bytes_at_an_odd_address_are_copied() -> None:
    memory = aligned(17)[1:]
    memory[:] = bytes(16)
    tensor = NONE.decode(memory, torch.float32, (4,))
    assert tensor.data_ptr() % 64 == 0
    tensor += 1
    assert bytes(memory) == bytes(16)


def test_what_is_decoded_can_be_written_to() -> None:
    message = bytes(NONE.encode(torch.zeros(3)))
    decoded = NONE.decode(memoryview(message), torch.float32, (3,))
    decoded += 1
    assert message == bytes(12)
