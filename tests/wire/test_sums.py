"""What an owner adds up: decoded, weighed and added as one after the other, whatever the codec."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distqat.errors import MessageError
from distqat.wire import codecs
from distqat.wire.codecs.codec import Floats
from distqat.wire.codecs.memory import CHUNK

NAMES = ("none", "bf16", "fp16", "int8", "int4", "int2")
WEIGHT = 0.3


def numbers(elements: int, seed: int) -> Floats:
    values: Floats = np.random.default_rng(seed).standard_normal(elements, dtype=np.float32)
    values[::7] = 0.0
    return values


def moved(data: memoryview) -> memoryview:
    """The same bytes at an odd address."""
    shifted = np.empty(data.nbytes + 1, np.uint8)
    shifted[1:] = np.frombuffer(data, np.uint8)
    return shifted.data[1:].toreadonly()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("elements", [1, 63, 64, 255, 256, 257, 5000, CHUNK + 1001])
def test_as_decoding_weighing_and_adding(name: str, elements: int) -> None:
    codec = codecs.find(name)
    data = moved(codec.encode(torch.from_numpy(numbers(elements, 1))))
    decoded = codec.decode(data, torch.float32, (elements,)).numpy()
    before = numbers(elements, 2)
    total = before.copy()
    squares = codec.add_part(data, elements, 0, WEIGHT, total)
    assert np.array_equal(total, before + decoded * np.float32(WEIGHT))
    assert squares == pytest.approx(float(np.square(decoded.astype(np.float64)).sum()), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_a_vector(name: str) -> None:
    codec, elements, begin, end = codecs.find(name), 5000, 1024, 3333
    data = codec.encode(torch.from_numpy(numbers(elements, 1)))
    decoded = codec.decode(data, torch.float32, (elements,)).numpy()[begin:end]
    total = np.zeros(end - begin, np.float32)
    squares = codec.add_part(data, elements, begin, WEIGHT, total)
    assert np.array_equal(total, decoded * np.float32(WEIGHT))
    assert squares == pytest.approx(float(np.square(decoded.astype(np.float64)).sum()), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_zero_is_nothing(name: str) -> None:
    codec, elements = codecs.find(name), 700
    data = codec.encode(torch.from_numpy(-numbers(elements, 1)))
    decoded = codec.decode(data, torch.float32, (elements,)).numpy()
    total = np.full(elements, -0.0, np.float32)
    codec.add_part(data, elements, 0, 1.0, total)
    assert total.tobytes() == decoded.tobytes()


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("scale", [np.inf, np.nan, -1.0])
def test_a_scale_that_cannot_be_is_refused(name: str, scale: float) -> None:
    codec, elements = codecs.find(name), 1000
    data = np.frombuffer(codec.encode(torch.from_numpy(numbers(elements, 1))), np.uint8).copy()
    data[:4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    with pytest.raises(MessageError):
        codec.add_part(data.data, elements, 0, WEIGHT, np.zeros(elements, np.float32))


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 31, 32, 64])
def test_what_is_no_number_shows_in_the_squares(wrong: float, at: int) -> None:
    values = numbers(65, 1)
    values[at] = wrong
    squares = codecs.find("none").add_part(memoryview(values.tobytes()), 65, 0, WEIGHT, np.zeros(65, np.float32))
    assert not np.isfinite(squares)


def test_what_stands_behind_the_last_of_an_odd_number_is_not_counted() -> None:
    codec = codecs.find("int4")
    data = np.frombuffer(codec.encode(torch.ones(3)), np.uint8).copy()
    data[-1] = data[-1] & 0x0F
    total = np.zeros(3, np.float32)
    assert codec.add_part(data.data, 3, 0, 1.0, total) == pytest.approx(3.0)
    assert total.tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize(("name", "code"), [("int8", 0x80), ("int4", 0x00)])
def test_a_code_that_is_never_written_shows_when_it_is_too_large(name: str, code: int) -> None:
    codec, elements = codecs.find(name), 256
    data = np.frombuffer(codec.encode(torch.full((elements,), torch.finfo(torch.float32).max)), np.uint8).copy()
    total = np.zeros(elements, np.float32)
    assert np.isfinite(codec.add_part(data.data, elements, 0, WEIGHT, total))
    assert np.isfinite(total).all()
    data[-1] = code
    assert not np.isfinite(codec.add_part(data.data, elements, 0, WEIGHT, total))
