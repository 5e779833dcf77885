from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.errors import MessageError, TensorError
from distqat.wire import tensors
from distqat.wire.tensors import TensorHeader

TENSORS = {
    "hidden": torch.arange(6.0).reshape(2, 3),
    "labels": torch.tensor([4, 1]),
    "nothing": torch.empty(0, 3),
    "scale": torch.tensor(0.5, dtype=torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
}


def test_round_trip_in_order() -> None:
    headers, payload = tensors.encode(TENSORS)
    assert [header.name for header in headers] == list(TENSORS)
    assert sum(header.bytes for header in headers) == len(payload) == 24 + 16 + 0 + 2 + 3
    back = tensors.decode(headers, memoryview(bytes(payload)))
    assert list(back) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


def test_no_tensors_at_all() -> None:
    headers, payload = tensors.encode({})
    assert (headers, len(payload)) == ([], 0)
    assert tensors.decode([], memoryview(b"")) == {}


def test_one_tensor_is_not_copied() -> None:
    tensor = torch.zeros(2)
    _, payload = tensors.encode({"hidden": tensor})
    tensor[0] = 1.0
    assert bytes(payload) != bytes(8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int16])
def test_what_does_not_travel_is_refused_at_home(dtype: torch.dtype) -> None:
    with pytest.raises(TensorError, match="tensor 'hidden' has element type"):
        tensors.encode({"hidden": torch.zeros(2, dtype=dtype)})


GOOD = TensorHeader("hidden", "float32", (2, 3), "none", 24)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (replace(GOOD, bytes=20), "headers speak of 20 bytes, the payload has 24"),
        (replace(GOOD, dtype="float64"), "element type 'float64', which is not taken"),
        (replace(GOOD, dtype="load"), "element type 'load', which is not taken"),
        (replace(GOOD, dtype="int64"), r"shape \(2, 3\) does not take 24 bytes"),
        (replace(GOOD, shape=(2, 4)), r"shape \(2, 4\) does not take 24 bytes"),
        (replace(GOOD, shape=()), r"shape \(\) does not take 24 bytes"),
        (replace(GOOD, shape=(1,) * 7 + (2, 3)), "has 9 dimensions"),
        (replace(GOOD, shape=(2**64 - 1, 2**64 - 1)), "which is no tensor's"),
        (replace(GOOD, shape=(-2, -3)), "which is no tensor's"),
        (replace(GOOD, codec="int3"), "tensor 'hidden': unknown codec 'int3'"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(header: TensorHeader, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        tensors.decode([header], memoryview(bytes(24)))


@pytest.mark.parametrize("shape", [(0, 2**63), (0, 2**40, 2**40), (2**62, 2**62, 0)])
def test_an_empty_tensor_of_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MessageError, match="which is no tensor's"):
        tensors.decode([replace(GOOD, shape=shape, bytes=0)], memoryview(b""))


def test_bytes_of_one_tensor_are_not_taken_for_another() -> None:
    headers = [replace(GOOD, bytes=20), replace(GOOD, name="labels", bytes=28)]
    with pytest.raises(MessageError, match="tensor 'hidden'"):
        tensors.decode(headers, memoryview(bytes(48)))


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(MessageError, match="tensor 'hidden' is there twice"):
        tensors.decode([GOOD, GOOD], memoryview(bytes(48)))


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            TensorHeader,
            st.sampled_from(["hidden", "labels"]),
            st.sampled_from([*tensors.DTYPES, "object"]),
            st.lists(st.one_of(st.integers(0, 4), st.integers(0, 2**64 - 1)), max_size=10).map(tuple),
            st.sampled_from(["none", "pickle"]),
            st.integers(0, 40),
        ),
        max_size=3,
    ),
    st.booleans(),
)
def test_any_headers_give_tensors_or_an_error(headers: list[TensorHeader], fits: bool) -> None:
    size = sum(header.bytes for header in headers) if fits else 16
    try:
        decoded = tensors.decode(headers, memoryview(bytes(size)))
    except MessageError:
        return
    assert [tuple(tensor.shape) for tensor in decoded.values()] == [header.shape for header in headers]
