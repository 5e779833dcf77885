"""zstd on real bytes: nothing is lost, what is torn is refused, and it is on for sparse activations on a slow link."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.errors import MessageError
from distqat.wire import codecs, tensors
from distqat.wire.compression import Compression, Mode
from distqat.wire.zstd import compress, decompress

ELEMENTS = 1 << 20
SLOW, FAST = 2.5e6, 5e9
"""Bytes per second."""


def known(rate: float, mode: Mode = "auto") -> Compression:
    """With a link that was measured."""
    compression = Compression(mode)
    compression.link_rate = rate
    return compression


def activations(codec: str, relu: bool) -> memoryview:
    hidden = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(3))
    return codecs.find(codec).encode(hidden.relu() if relu else hidden)


@pytest.mark.parametrize("codec", ["none", "bf16", "int8"])
def test_sparse_activations_are_compressed_on_a_slow_link_only(codec: str) -> None:
    data = activations(codec, relu=True)
    slow, fast = known(SLOW), known(FAST)
    small = compress(data, slow)
    assert small is not None
    assert len(small) < 0.7 * len(data)
    assert decompress(small, len(data)) == data
    assert slow.is_on
    assert slow.statistics().ratio == pytest.approx(len(small) / len(data), abs=0.05)
    assert compress(data, fast) is None
    assert not fast.is_on


def test_codes_that_fill_their_bytes_are_left_alone() -> None:
    data = memoryview(np.random.default_rng(1).bytes(ELEMENTS))
    compression = known(SLOW)
    for _ in range(5):
        assert compress(data, compression) is None
    assert not compression.is_on
    assert compression.statistics().ratio == pytest.approx(1.0, abs=0.01)


def test_what_became_no_smaller_travels_as_it_was() -> None:
    data = memoryview(np.random.default_rng(1).bytes(ELEMENTS))
    assert compress(data, known(SLOW, "on")) is None


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["auto", "on", "off"]),
    st.sampled_from([0.0, SLOW, FAST]),
    st.sampled_from(["none", "bf16", "int8", "int4"]),
    st.lists(st.sampled_from([0, 1, 1000, 16_384, 65_536, 300_000]), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_tensors_are_the_same_with_and_without(
    mode: Mode, rate: float, codec: str, sizes: list[int], zeros: float
) -> None:
    random = np.random.default_rng(7)
    named = {}
    for index, size in enumerate(sizes):
        values = random.standard_normal(size, dtype=np.float32)
        values[random.random(size) < zeros] = 0
        named[str(index)] = torch.from_numpy(values)
    compression = known(rate, mode) if rate else Compression(mode)
    headers, payload = tensors.encode(named, codec, compression)
    plain_headers, plain = tensors.encode(named, codec)
    assert tensors.raw_bytes(headers) == len(plain) >= len(payload)
    back = tensors.decode(headers, memoryview(bytes(payload)))
    expected = tensors.decode(plain_headers, memoryview(bytes(plain)))
    assert all(torch.equal(back[name], expected[name]) for name in named)


BOMB = zstandard.ZstdCompressor().compress(bytes(64 << 20))
SMALL = zstandard.ZstdCompressor().compress(bytes(1000))


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (BOMB, 1000),
        (SMALL, 999),
        (SMALL, 1001),
        (SMALL, 0),
        (SMALL[:-1], 1000),
        (SMALL + b"x", 1000),
        (SMALL + SMALL, 1000),
        (SMALL[:4] + bytes([SMALL[4] ^ 8]) + SMALL[5:], 1000),
        (b"", 1000),
        (bytes(1000), 1000),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)), 1000),
    ],
)
def test_a_bomb_or_something_torn_is_refused_before_it_takes_memory(data: bytes, size: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MessageError, match="compressed bytes"):
            decompress(memoryview(data), size)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_header_that_promises_other_bytes_than_the_codec_takes_is_refused() -> None:
    (header,), payload = tensors.encode({"hidden": torch.zeros(100_000)}, "none", known(SLOW, "on"))
    assert (header.raw, header.bytes) == (400_000, len(payload))
    assert header.bytes < 1000
    whole = memoryview(bytes(payload))
    for raw in (399_996, 400_004, 1, header.bytes):
        with pytest.raises(MessageError, match="does not take"):
            tensors.decode([tensors.TensorHeader("hidden", "float32", (100_000,), "none", header.bytes, raw)], whole)
