"""What every codec does with tensors of every shape, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.errors import ConfigError, MessageError, TensorError
from distqat.sections import CodecName, RoundCodec
from distqat.wire import codecs
from distqat.wire.codecs.codec import Codec
from distqat.wire.codecs.memory import CHUNK, HUGE, SCRATCH
from distqat.wire.frames import ALIGNMENT

Layout = Callable[[torch.Tensor], torch.Tensor]

LOSSY = ("bf16", "fp16", "int8", "int4", "int2")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ERROR = {"none": 0.0, "bf16": 2**-8, "fp16": 2**-11, "int8": 0.51 / 127, "int4": 0.51 / 7, "int2": 1.0}
"""Relative to the largest element."""

LAYOUTS: dict[str, Layout] = {
    "plain": lambda values: values,
    "empty": lambda values: values[:0],
    "no dimension": lambda values: values[0, 0, 0],
    "one element": lambda values: values[:1, :1, :1],
    "one negative": lambda values: -values[:1, :1, 1:2],
    "transposed": lambda values: values.transpose(0, 2),
    "every other": lambda values: values[:, ::2],
    "repeated": lambda values: values[:1].expand(7, -1, -1),
    "odd": lambda values: values.reshape(-1)[:777],
    "constant": lambda values: torch.full_like(values, 0.3),
    "zeros": torch.zeros_like,
    "negative": lambda values: -values.abs() - 1,
}


@pytest.fixture(params=LOSSY)
def lossy(request: pytest.FixtureRequest) -> Codec:
    return codecs.find(request.param)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def through(codec: Codec, tensor: torch.Tensor) -> torch.Tensor:
    """Encoded and decoded again, with bytes that cannot be written to, as they come from the network."""
    return codec.decode(memoryview(bytes(codec.encode(tensor))), tensor.dtype, tuple(tensor.shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ERROR)
def test_any_layout_survives(name: str, dtype: torch.dtype, layout: str) -> None:
    codec = codecs.find(name)
    tensor = LAYOUTS[layout](numbers(9, 11, 13, dtype=dtype))
    data = codec.encode(tensor)
    assert data.nbytes == len(data) == codec.size(tensor.numel(), dtype)
    back = codec.decode(data, dtype, tuple(tensor.shape))
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    if tensor.numel():
        # The decoded number is rounded to the element type once more.
        allowed = float(tensor.abs().max()) * (ERROR[name] + (torch.finfo(dtype).eps if ERROR[name] else 0))
        assert float((back.double() - tensor.double()).abs().max()) <= allowed


@pytest.mark.parametrize("elements", [CHUNK, CHUNK + 1, 2 * CHUNK + 65])
def test_chunks_leave_no_trace(lossy: Codec, elements: int) -> None:
    """Of two parts, the first of which is whole blocks, scales and codes are those of the whole."""
    tensor, half = numbers(elements), CHUNK // 2
    whole, first, rest = (bytes(lossy.encode(part)) for part in (tensor, tensor[:half], tensor[half:]))
    begins = [len(data) - _code_bytes(lossy, data, count) for data, count in ((first, half), (rest, elements - half))]
    assert whole == first[: begins[0]] + rest[: begins[1]] + first[begins[0] :] + rest[begins[1] :]
    decoded = torch.cat([through(lossy, tensor[:half]), through(lossy, tensor[half:])])
    assert torch.equal(through(lossy, tensor), decoded)


def _code_bytes(codec: Codec, data: bytes, elements: int) -> int:
    return {"int8": elements, "int4": (elements + 1) // 2, "int2": (elements + 3) // 4}.get(codec.name, len(data))


@pytest.mark.parametrize("name", ERROR)
@pytest.mark.parametrize("begin", [0, 1, 3])
def test_encode_into_bytes_anywhere(name: str, begin: int) -> None:
    codec, tensor = codecs.find(name), numbers(3, 100)
    size = codec.size(300, torch.float32)
    memory = bytearray(b"\xaa" * (begin + size + 5))
    codec.encode_into(tensor, memoryview(memory)[begin : begin + size])
    assert memory == b"\xaa" * begin + bytes(codec.encode(tensor)) + b"\xaa" * 5
    decoded = codec.decode(memoryview(memory)[begin : begin + size], torch.float32, (3, 100))
    assert torch.equal(decoded, through(codec, tensor))


def test_a_decoded_tensor_is_its_own(lossy: Codec) -> None:
    data = bytearray(lossy.encode(numbers(300)))
    decoded = lossy.decode(memoryview(data), torch.float32, (300,))
    before = decoded.clone()
    data[:] = bytes(len(data))
    through(lossy, torch.ones(300))
    assert torch.equal(decoded, before)
    decoded += 1


@pytest.mark.parametrize("name", ERROR)
def test_a_decoded_tensor_lies_where_torch_would_put_it(name: str) -> None:
    for elements in (5, HUGE // 4 + 5):
        codec = codecs.find(name)
        data = memoryview(bytes(codec.size(elements, torch.float32)))
        assert codec.decode(data, torch.float32, (elements,)).data_ptr() % ALIGNMENT == 0


def test_a_tensor_that_needs_a_gradient(lossy: Codec) -> None:
    weight = torch.ones(3, requires_grad=True)
    assert bytes(lossy.encode(weight)) == bytes(lossy.encode(torch.ones(3)))


@pytest.mark.parametrize("bad", ["nan", "-nan", "inf", "-inf"])
def test_nan_and_infinity_are_refused_by_name(lossy: Codec, bad: str) -> None:
    for dtype in FLOATS:
        for where in (0, 511, 600, CHUNK + 5):
            tensor = numbers(CHUNK + 6 if where > CHUNK else 601, dtype=dtype)
            tensor[where] = float(bad.strip("-")) * (-1 if bad.startswith("-") else 1)
            what = rf"codec {lossy.name}: 1 of {len(tensor)} elements are NaN or infinite"
            with pytest.raises(TensorError, match=what):
                lossy.encode(tensor)
            with pytest.raises(TensorError, match=what):
                lossy.encode_into(tensor, memoryview(bytearray(lossy.size(len(tensor), dtype))))


@pytest.mark.parametrize(
    ("name", "dtype", "number"),
    [
        ("fp16", torch.float32, 65520.0),
        ("fp16", torch.float32, -1e9),
        ("fp16", torch.bfloat16, 65536.0),
        ("bf16", torch.float32, 3.4e38),
        ("bf16", torch.float16, -65504.0),
    ],
)
def test_what_is_too_large_is_refused_by_name(name: str, dtype: torch.dtype, number: float) -> None:
    tensor = torch.tensor([1.0, number, 2.0], dtype=dtype)
    with pytest.raises(TensorError, match=rf"codec {name}: .* is too large"):
        codecs.find(name).encode(tensor)


def test_the_largest_that_fits_stays_finite(lossy: Codec) -> None:
    for dtype in FLOATS:
        limit = torch.finfo(dtype).max
        if lossy.name == "fp16":
            limit = {torch.float32: 65519.0, torch.float16: 65504.0, torch.bfloat16: 65280.0}[dtype]
        elif lossy.name == "bf16":
            limit = {torch.float32: 3.39e38, torch.float16: 65280.0}.get(dtype, limit)
        tensor = torch.tensor([limit, -limit, 0.0], dtype=dtype)
        assert torch.allclose(through(lossy, tensor).double(), tensor.double(), rtol=1e-2)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 3e38])
def test_a_scale_that_no_tensor_has_is_refused(name: str, scale: float) -> None:
    codec = codecs.find(name)
    data = bytearray(codec.encode(numbers(300)))
    data[4:8] = torch.tensor([scale]).view(torch.uint8).numpy().tobytes()
    with pytest.raises(MessageError, match=f"codec {name}: a scale"):
        codec.decode(memoryview(data), torch.float32, (300,))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_a_magnitude_that_no_tensor_has_is_refused(number: float) -> None:
    codec = codecs.find("int2")
    data = bytearray(codec.encode(numbers(300)))
    data[6:8] = bytes(codecs.find("none").encode(torch.tensor([number]).to(torch.bfloat16)))
    assert [codec.is_sound(memoryview(data), 300, begin, begin + 64) for begin in (0, 64, 128)] == [True, False, True]
    with pytest.raises(MessageError, match="codec int2: a magnitude"):
        codec.decode(memoryview(data), torch.float32, (300,))


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_halves_that_are_no_numbers_are_refused(name: str, number: float) -> None:
    half = torch.tensor([1.0, number]).to(torch.bfloat16 if name == "bf16" else torch.float16)
    with pytest.raises(MessageError, match=f"codec {name}: NaN, infinity"):
        codecs.find(name).decode(codecs.find("none").encode(half), torch.float32, (2,))


@pytest.mark.parametrize(("name", "code"), [("int8", b"\x80"), ("int4", b"\x88")])
def test_a_code_that_is_never_written_does_no_harm(name: str, code: bytes) -> None:
    codec = codecs.find(name)
    largest = bytes(codec.encode(torch.tensor([torch.finfo(torch.float32).max])))[:4]
    decoded = codec.decode(memoryview(largest + code), torch.float32, (1,))
    assert float(decoded) == (float("-inf") if name == "int8" else 0.0)


@given(data=st.binary(min_size=1, max_size=400), elements=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_garbage_is_refused_or_decodes_to_numbers(data: bytes, elements: int) -> None:
    for codec in map(codecs.find, LOSSY):
        garbage = (data * 1201)[: codec.size(elements, torch.float32)]
        try:
            decoded = codec.decode(memoryview(garbage), torch.float32, (elements,))
        except MessageError:
            continue
        assert not decoded.isnan().any()


@pytest.mark.parametrize("name", ERROR)
@pytest.mark.parametrize("shape", [(), (2,), (1 << 40,), (1 << 60, 1 << 60)])
def test_a_length_that_does_not_fit_is_refused_before_anything_is_allocated(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(MessageError, match="13 bytes for a"):
        codecs.find(name).decode(memoryview(bytes(13)), torch.float32, shape)


def test_only_floats_are_taken(lossy: Codec) -> None:
    data = memoryview(bytes(lossy.size(5, torch.int64)))
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.float64):
        with pytest.raises(
            TensorError, match=f"codec {lossy.name} is for float32, bfloat16 and float16, not for {dtype}"
        ):
            lossy.encode(torch.ones(5, dtype=dtype))
        with pytest.raises(MessageError, match=f"not for {dtype}"):
            lossy.decode(data, dtype, (5,))


def test_threads_do_not_meet(lossy: Codec) -> None:
    tensors = [numbers(100_000) * factor for factor in (1, 2, 3, 4)]
    alone = [bytes(lossy.encode(tensor)) for tensor in tensors]
    found: dict[int, bool] = {}
    together = threading.Barrier(len(tensors))

    def work(index: int) -> None:
        together.wait()
        found[index] = all(lossy.encode(tensors[index]) == alone[index] for _ in range(15))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(tensors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(len(tensors)), True)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_only_the_own_thread_computes(lossy: Codec) -> None:
    """torch starts a team of threads for each thread that gives it a large operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert _threads_started_by(lambda: numbers(3 * CHUNK).double()) == 2
        for dtype in FLOATS:
            tensor = numbers(3 * CHUNK, dtype=dtype)
            assert _threads_started_by(partial(through, lossy, tensor)) == 0
    finally:
        torch.set_num_threads(threads)


def _threads_started_by(work: Callable[[], object]) -> int:
    started: list[int] = []

    def run() -> None:
        before = set(Path("/proc/self/task").iterdir())
        work()
        started.append(len(set(Path("/proc/self/task").iterdir()) - before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return started[0]


def test_scratch_memory_is_bounded() -> None:
    assert sum(value.nbytes for value in vars(SCRATCH).values()) < 5 << 20


def test_names() -> None:
    assert set(codecs.names()) == {*get_args(CodecName), *get_args(RoundCodec)} - {"auto"}
    # For pipelines it is too coarse.
    assert "int2" not in get_args(CodecName)
    assert all(codecs.find(name).name == name for name in codecs.names())
    with pytest.raises(ConfigError, match="unknown codec 'int3'; there are: bf16, fp16, int2, int4, int8, none"):
        codecs.find("int3")


@pytest.mark.parametrize("name", ERROR)
@given(blocks=st.integers(1, 9), rest=st.integers(0, 255), cuts=st.lists(st.integers(0, 9), max_size=4))
@settings(max_examples=25, deadline=None)
def test_parts_are_the_bytes_of_the_whole(name: str, blocks: int, rest: int, cuts: list[int]) -> None:
    """However a vector is cut at whole blocks: encoded by parts, taken apart, decoded by parts."""
    codec = codecs.find(name)
    values = numbers(256 * blocks + rest)
    elements, array = len(values), values.numpy()
    whole = codec.encode(values)
    bounds = [0, *sorted(256 * cut for cut in set(cuts) if 0 < cut <= blocks and 256 * cut < elements), elements]
    assert 256 % codec.block == 0
    made = memoryview(bytearray(len(whole)))
    decoded = torch.empty(elements)
    for begin, end in pairwise(bounds):
        codec.encode_part(array[begin:end], made, elements, begin)
        part = b"".join(codec.cut(whole, elements, begin, end))
        assert part == bytes(codec.encode(values[begin:end]))
        codec.decode_part(memoryview(b"x" + bytes(whole))[1:], elements, begin, decoded[begin:end].numpy())
        assert codec.is_sound(whole, elements, begin, end)
    assert made == whole
    assert torch.equal(decoded, through(codec, values))


@pytest.mark.parametrize("name", ERROR)
@given(seed=st.integers(0, 1 << 20), elements=st.integers(1, 700), spikes=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_no_vector_grows_by_more_than_it_says(name: str, seed: int, elements: int, spikes: int) -> None:
    codec = codecs.find(name)
    values = torch.randn(elements, generator=torch.Generator().manual_seed(seed))
    values[:spikes] *= 1000
    assert float(through(codec, values).double().norm()) <= float(values.double().norm()) * codec.growth * (1 + 1e-6)


@pytest.mark.parametrize("name", ERROR)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bytes_that_are_no_numbers_are_not_sound(name: str, bad: float) -> None:
    codec = codecs.find(name)
    data = bytearray(codec.encode(numbers(512)))
    width = {"bf16": 2, "fp16": 2, "int2": 2}.get(name, 4)
    half = {"fp16": torch.float16}.get(name, torch.bfloat16 if width == 2 else torch.float32)
    at = len(data) // 2 // width * width if name in ("none", "bf16", "fp16") else 4 * (256 // codec.block)
    data[at : at + width] = torch.tensor([bad]).to(half).view(torch.uint8).numpy().tobytes()
    assert codec.is_sound(memoryview(data), 512, 0, 256)
    assert not codec.is_sound(memoryview(data), 512, 256, 512)
    assert not codec.is_sound(memoryview(data), 512, 0, 512)
