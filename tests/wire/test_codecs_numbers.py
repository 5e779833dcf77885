"""How near the decoded numbers are: against the naive codecs, and as properties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.pb import common_pb2
from distqat.wire import codecs
from tests.wire import naive

Naive = Callable[[Sequence[float]], bytes]

SAMPLE = 1 << 19
LIMITS = {
    "int2": (0.125, 0.3),
    "int8": (5e-5, 3e-4),
    "int4": (1.2e-2, 3.5e-2),
    "bf16": (3e-6, 3e-6),
    "fp16": (5e-8, 5e-8),
}
"""Mean squared error relative to the mean square, of normal and of Student-t(3) numbers."""

any_number = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
near_one = st.floats(min_value=-4, max_value=4, width=32)
small = st.floats(min_value=-60000, max_value=60000, width=32)


def lists(elements: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    """Long ones, out of a few numbers: hypothesis draws slowly."""
    few = st.lists(elements, min_size=1, max_size=12)
    return st.builds(_spread, few, st.integers(0, 600), st.integers(0, 1 << 16))


def _spread(few: list[float], size: int, seed: int) -> list[float]:
    chosen = np.random.default_rng(seed).integers(0, len(few), size)
    return [few[index] for index in chosen]


def through(name: str, values: torch.Tensor) -> torch.Tensor:
    codec = codecs.find(name)
    return codec.decode(codec.encode(values), values.dtype, tuple(values.shape))


@pytest.mark.parametrize("oracle", [naive.int8, naive.int4, naive.int2, naive.fp16, naive.bf16])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_bytes_are_those_of_the_naive_codec(oracle: Naive, data: st.DataObject) -> None:
    elements = small if oracle is naive.fp16 else near_one | any_number.filter(lambda number: abs(number) < 3.3e38)
    values = data.draw(lists(elements))
    assert bytes(codecs.find(oracle.__name__).encode(torch.tensor(values))) == oracle(values)


@pytest.mark.parametrize("oracle", [naive.int8, naive.int4, naive.int2, naive.bf16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(values=lists(near_one))
@settings(max_examples=15, deadline=None)
def test_shorter_floats_are_computed_in_fp32(oracle: Naive, dtype: torch.dtype, values: list[float]) -> None:
    tensor = torch.tensor(values).to(dtype)
    codec = codecs.find(oracle.__name__)
    data = codec.encode(tensor)
    assert bytes(data) == oracle(tensor.tolist())
    assert torch.equal(codec.decode(data, dtype, (len(values),)), through(codec.name, tensor.float()).to(dtype))


@pytest.mark.parametrize(("name", "block", "levels"), [("int8", 256, 127), ("int4", 64, 7)])
@given(values=lists(near_one | any_number))
@settings(max_examples=30, deadline=None)
def test_an_element_moves_by_half_a_step_at_most(name: str, block: int, levels: int, values: list[float]) -> None:
    numbers = np.array(values, np.float32).astype(np.float64)
    moved = np.abs(through(name, torch.tensor(values)).double().numpy() - numbers)
    for begin in range(0, len(values), block):
        step = max(np.abs(numbers[begin : begin + block]).max(), naive.FLOOR) / levels
        assert moved[begin : begin + block].max() <= step * 0.5001


@pytest.mark.parametrize("name", LIMITS)
@given(values=lists(near_one | small))
@settings(max_examples=25, deadline=None)
def test_signs_are_symmetric(name: str, values: list[float]) -> None:
    tensor = torch.tensor(values)
    assert torch.equal(through(name, -tensor), -through(name, tensor))


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@given(values=lists(near_one | small))
@settings(max_examples=25, deadline=None)
def test_the_second_time_nothing_is_rounded(name: str, values: list[float]) -> None:
    once = through(name, torch.tensor(values))
    assert torch.equal(through(name, once), once)


@pytest.mark.parametrize("name", LIMITS)
@given(elements=st.integers(1, 1 << 40), dtype=st.sampled_from(["float32", "float16", "bfloat16"]))
@settings(max_examples=50, deadline=None)
def test_never_more_bytes_than_raw_with_its_header(name: str, elements: int, dtype: str) -> None:
    element = getattr(torch, dtype)
    raw = elements * element.itemsize
    header = common_pb2.TensorHeader(name="x", dtype=dtype, shape=[elements], codec="none", bytes=raw).ByteSize()
    assert codecs.find(name).size(elements, element) < raw + header


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_most_of_the_bytes_are_gone(name: str) -> None:
    raw = 4 * SAMPLE
    assert raw / codecs.find(name).size(SAMPLE, torch.float32) == pytest.approx(
        {"int8": 3.938, "int4": 7.111, "int2": 12.8}[name], 1e-3
    )


@pytest.mark.parametrize("name", LIMITS)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=3, deadline=None)
def test_the_error_on_normal_numbers(name: str, seed: int) -> None:
    error, bias = _error(name, np.random.default_rng(seed).standard_normal(SAMPLE))
    assert error <= LIMITS[name][0]
    assert bias < 1e-3


@pytest.mark.parametrize("name", LIMITS)
def test_the_error_on_numbers_with_heavy_tails(name: str) -> None:
    """Of several samples the median: the mean square of Student-t(3) has no variance, so a single one may stray far."""
    found = [_error(name, np.random.default_rng(seed).standard_t(3, SAMPLE)) for seed in range(5)]
    assert median(error for error, _ in found) <= LIMITS[name][1]
    assert max(bias for _, bias in found) < 1e-3


def _error(name: str, values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean square of the error to that of the values, and mean of the error to the root of that."""
    tensor = torch.from_numpy(values.astype(np.float32))
    moved = through(name, tensor).double() - tensor.double()
    square = float(tensor.double().square().mean())
    return float(moved.square().mean()) / square, abs(float(moved.mean())) / square**0.5
