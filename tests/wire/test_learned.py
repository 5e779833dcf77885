"""Learned codes: what comes out are the numbers that the sender has, to the bit; the rest is refused."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import MessageError, TensorError
from distqat.wire import tensors
from distqat.wire.codecs import learned
from distqat.wire.codecs.learned import LARGEST, CodedTensor, Form, form_of
from distqat.wire.codecs.memory import CHUNK
from distqat.wire.compression import Compression
from distqat.wire.frames import ALIGNMENT
from distqat.wire.tensors import TensorHeader

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((3, 5), (2, 3, 4, 5), (4, 7, 6), (1,), (9,), (2, 0, 3), (1, 1), (300, 3, 2, 2))
forms = st.builds(Form, st.integers(2, 8), st.booleans(), st.booleans(), st.booleans())


def draw_coded(form: Form, shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 1) -> CodedTensor:
    numbers = torch.Generator().manual_seed(seed)
    heads = torch.randn((2, form.num_steps(tuple(shape))), generator=numbers)
    step, offset = heads[0].abs() + 1e-3, heads[1] if form.has_offset else None
    if not form.is_per_channel:
        step, offset = step[0], None if offset is None else offset[0]
    codes = torch.randint(1 << form.bits, tuple(shape), generator=numbers, dtype=torch.uint8)
    return CodedTensor(form, codes, step, offset, dtype)


def plain_bits(coded: CodedTensor) -> bytes:
    """The packed codes, in the simplest way: one long number."""
    codes, bits = coded.codes.flatten().tolist(), coded.form.bits
    whole: int = sum(code << (bits * place) for place, code in enumerate(codes))
    return whole.to_bytes(-(-len(codes) * bits // 8), "little")


def through(coded: CodedTensor) -> torch.Tensor:
    """Sent and received, in bytes that cannot be written to."""
    headers, payload = tensors.encode({"hidden": coded}, coded.form.name)
    return tensors.decode(headers, memoryview(bytes(payload)))["hidden"]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    kind = torch.int32 if one.dtype == torch.float32 else torch.int16
    return one.dtype == other.dtype and torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


@given(forms, st.sampled_from(SHAPES), st.sampled_from(FLOATS), st.integers(0, 1 << 30))
def test_what_comes_out_is_what_the_sender_has(
    form: Form, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    coded = draw_coded(form, shape, dtype, seed)
    back = through(coded)
    assert back.shape == coded.shape
    assert same_bits(back, coded.values())


@given(forms, st.sampled_from((*SHAPES, ())), st.sampled_from(FLOATS))
def test_other_devices_decode_the_same(form: Form, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    coded = draw_coded(form, shape, dtype)
    data = learned.encode(coded) if coded.numel() else memoryview(b"")
    expected = learned.decode(form, data, dtype, shape)
    with pytest.MonkeyPatch.context() as patch:
        # So that CPU tensors go through the operations that are meant for other devices.
        patch.setattr(learned, "CPU", torch.device("meta"))
        assert same_bits(learned.decode(form, data, dtype, shape, torch.device("cpu")), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_makes_the_same_bytes_and_numbers() -> None:
    device = torch.device("cuda")
    for bits in range(2, 9):
        coded = draw_coded(Form(bits, is_per_channel=True, has_offset=True), (9, 33, 65))
        assert coded.offset is not None
        there = [head.to(device) for head in (coded.codes, coded.step, coded.offset)]
        moved = CodedTensor(coded.form, there[0], there[1], there[2], coded.dtype)
        data = bytes(learned.encode(coded))
        assert bytes(learned.encode(moved)) == data
        assert same_bits(moved.values().cpu(), coded.values())
        assert same_bits(
            learned.decode(coded.form, memoryview(data), coded.dtype, coded.shape, device).cpu(), coded.values()
        )


@given(forms, st.sampled_from(SHAPES))
def test_the_bytes_are_steps_offsets_and_bits(form: Form, shape: tuple[int, ...]) -> None:
    coded = draw_coded(form, shape)
    (header,), payload = tensors.encode({"hidden": coded}, form.name)
    assert header == TensorHeader("hidden", "float32", tuple(shape), form.name, form.size(tuple(shape)))
    heads = [head.reshape(-1).tolist() for head in (coded.step, coded.offset) if head is not None]
    numbers = [number for head in heads for number in head]
    expected = struct.pack(f"<{len(numbers)}f", *numbers) + plain_bits(coded) if coded.numel() else b""
    assert bytes(payload) == expected


def test_a_code_takes_its_bits_and_no_more() -> None:
    for bits in range(2, 9):
        assert Form(bits).size((64, 1024)) == 4 + 64 * 1024 * bits // 8
        assert Form(bits, is_per_channel=True, has_offset=True).size((8, 3, 5, 7)) == 2 * 3 * 4 + math.ceil(
            840 * bits / 8
        )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("elements", [CHUNK, CHUNK + 3, 2 * CHUNK + 9])
def test_chunks_leave_no_trace(bits: int, elements: int) -> None:
    coded = draw_coded(Form(bits), (elements,))
    assert same_bits(through(coded), coded.values())


@pytest.mark.parametrize("shape", [(3, 7, 300, 301), (2, CHUNK + 5), (90_001, 3)])
def test_channels_larger_and_smaller_than_a_chunk(shape: tuple[int, ...]) -> None:
    for dtype in FLOATS:
        coded = draw_coded(Form(4, is_per_channel=True, has_offset=True), shape, dtype)
        assert same_bits(through(coded), coded.values())


def test_codes_may_lie_in_any_order() -> None:
    coded = draw_coded(Form(5, has_offset=True), (6, 4, 8))
    turned = replace(coded, codes=coded.codes.transpose(0, 2)[:, ::2])
    assert same_bits(through(turned), turned.values())


def test_a_decoded_tensor_is_aligned_and_its_own() -> None:
    coded = draw_coded(Form(8), (100,))
    _, payload = tensors.encode({"hidden": coded}, "learned8")
    data = bytearray(bytes(payload))
    back = learned.decode(coded.form, memoryview(data), torch.float32, (100,))
    before = back.clone()
    data[:] = bytes(len(data))
    assert torch.equal(back, before)
    assert back.data_ptr() % ALIGNMENT == 0


def test_zero_is_never_negative() -> None:
    for form in (Form(4), Form(4, is_signed=False), Form(4, has_offset=True)):
        zero = torch.tensor([-form.lowest], dtype=torch.uint8)
        values = CodedTensor(form, zero, torch.tensor(0.5), torch.tensor(-0.0) if form.has_offset else None, FLOATS[0])
        assert math.copysign(1.0, float(through(values))) == 1.0


def test_no_fp16_is_infinite() -> None:
    coded = CodedTensor(Form(8), torch.tensor([0, 128, 255], dtype=torch.uint8), torch.tensor(1e4), None, torch.float16)
    assert through(coded).tolist() == [-65504, 0, 65504]
    assert same_bits(through(coded), coded.values())


def test_zstd_makes_codes_smaller_and_changes_none() -> None:
    coded = draw_coded(Form(4), (200_000,))
    coded.codes.remainder_(3)
    headers, payload = tensors.encode({"hidden": coded}, "learned4", Compression("on"))
    assert headers[0].raw == Form(4).size((200_000,))
    assert len(payload) < headers[0].raw * 0.9
    assert same_bits(tensors.decode(headers, memoryview(bytes(payload)))["hidden"], coded.values())


@given(forms)
def test_names_say_all(form: Form) -> None:
    assert form_of(form.name) == form


@pytest.mark.parametrize(
    "name", ["learned", "learned1", "learned9", "learned16", "learned4cu", "learned4 ", "none", ""]
)
def test_other_names_are_no_forms(name: str) -> None:
    assert form_of(name) is None


# What is wrong.


GOOD = draw_coded(Form(3, has_offset=True), (2, 5))


def refused(data: bytes, words: str, codec: str = "learned3+", shape: tuple[int, ...] = (2, 5), **also: object) -> None:
    header = replace(TensorHeader("hidden", "float32", shape, codec, len(data)), **also)  # type: ignore[arg-type]
    with pytest.raises(MessageError, match=words):
        tensors.decode([header], memoryview(data))


def test_another_size_than_the_form_has_is_refused() -> None:
    data = bytes(learned.encode(GOOD))
    assert len(data) == 12
    refused(data[:-1], "does not take 11 bytes")
    refused(data + b"\0", "does not take 13 bytes")
    for codec in ("learned4+", "learned3", "learned3c+", "learned8u"):
        refused(data, "does not take 12 bytes", codec)
    for shape in ((2, 8), (5,), (), (1 << 40, 5), (10, 0)):
        refused(data, "does not take 12 bytes", shape=shape)
    refused(data, "is no tensor's", shape=(1 << 47, 1 << 40))
    refused(data, "unknown codec 'learned1'", "learned1")


def test_a_huge_shape_with_channels_is_refused_before_anything_is_allocated() -> None:
    for shape in ((1, 1 << 47), (1, 1 << 40, 1, 1), (1 << 40, 1)):
        refused(bytes(64), "does not take 64 bytes", "learned2c+", shape)
        refused(bytes(64), "does not take", "learned2c+", shape, raw=1 << 30)


def test_integers_have_no_learned_codes() -> None:
    data = bytes(learned.encode(GOOD))
    refused(data, "for float32, bfloat16 and float16", dtype="int64")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 2 * LARGEST])
@pytest.mark.parametrize("place", ["step", "offset"])
def test_a_step_or_offset_that_is_none_is_refused_on_both_sides(place: str, number: float) -> None:
    wrong = replace(GOOD, **{place: torch.tensor(number)})  # type: ignore[arg-type]
    with pytest.raises(TensorError, match=r"codec learned3\+: a step or an offset that is not finite"):
        tensors.encode({"hidden": wrong}, "learned3+")
    data = bytearray(learned.encode(GOOD))
    begin = 0 if place == "step" else 4
    data[begin : begin + 4] = np.float32(number).tobytes()
    refused(bytes(data), "not finite, not positive or beyond")


@pytest.mark.parametrize("step", [0.0, -0.5])
def test_a_step_that_is_not_positive_is_refused(step: float) -> None:
    data = np.float32(step).tobytes() + bytes(learned.encode(GOOD))[4:]
    refused(data, "not positive")


def test_bits_behind_the_last_code_are_refused() -> None:
    data = bytearray(learned.encode(GOOD))
    for bit in (6, 7):
        wrong = bytearray(data)
        wrong[-1] |= 1 << bit
        refused(bytes(wrong), "something behind the last of 10")
    data[-1] ^= 1 << 5
    tensors.decode([TensorHeader("hidden", "float32", (2, 5), "learned3+", 12)], memoryview(bytes(data)))


def test_what_was_not_coded_so_is_refused_at_home() -> None:
    for tensor, codec, words in (
        (GOOD.values(), "learned3+", "is to travel as learned3\\+, and was coded as nothing"),
        (GOOD, "learned4+", "is to travel as learned4\\+, and was coded as learned3\\+"),
        (GOOD, "int8", "is to travel as int8, and was coded as learned3\\+"),
    ):
        with pytest.raises(TensorError, match=words):
            tensors.encode({"hidden": tensor}, codec)


def test_repr() -> None:
    assert repr(GOOD) == "<CodedTensor learned3+ (2, 5), torch.float32>"
