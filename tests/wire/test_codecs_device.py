"""What is computed on a GPU: the same bytes, and the same numbers, as on a CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.errors import MessageError, TensorError
from distqat.wire import codecs
from distqat.wire.codecs import blocks, half
from distqat.wire.codecs import device as on_device
from distqat.wire.codecs.codec import Codec

LOSSY = ("bf16", "fp16", "int8", "int4")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FOREIGN = torch.device("meta")
SIZES = (0, 1, 63, 64, 65, 256, 257, 1001, 300_000)


@pytest.fixture(params=LOSSY)
def codec(request: pytest.FixtureRequest) -> Codec:
    return codecs.find(request.param)


@pytest.fixture
def _every_device_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that CPU tensors go through the operations that are meant for other devices."""
    monkeypatch.setattr(blocks, "CPU", FOREIGN)
    monkeypatch.setattr(half, "CPU", FOREIGN)


def numbers(size: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(size)) * scale).to(dtype)


def test_torch_operations_make_the_same_bytes(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in FLOATS:
        for size in SIZES:
            tensor = numbers(size, dtype)
            data = bytes(codec.encode(tensor))
            decoded = codec.decode(memoryview(data), dtype, (size,))
            with monkeypatch.context() as patch:
                patch.setattr(blocks, "CPU", FOREIGN)
                patch.setattr(half, "CPU", FOREIGN)
                assert bytes(codec.encode(tensor)) == data
                assert torch.equal(codec.decode(memoryview(data), dtype, (size,), torch.device("cpu")), decoded)


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=300))
@settings(max_examples=100, deadline=None)
def test_torch_operations_make_the_same_bytes_of_any_numbers(values: list[float]) -> None:
    tensor = torch.tensor(values)
    for name in ("int8", "int4"):
        codec = codecs.find(name)
        assert isinstance(codec, blocks.BlockCodec)
        data = codec.encode(tensor)
        assert bytes(data) == bytes(on_device.encode(tensor, codec.layout).numpy())
        again = on_device.decode(torch.tensor(list(data), dtype=torch.uint8), len(values), codec.layout)
        assert torch.equal(again, codec.decode(data, torch.float32, (len(values),)))


@pytest.mark.usefixtures("_every_device_is_foreign")
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_nan_and_infinity_are_refused_by_name(codec: Codec, bad: str) -> None:
    for dtype in FLOATS:
        tensor = numbers(601, dtype)
        tensor[600] = float(bad)
        with pytest.raises(TensorError, match=rf"codec {codec.name}: 1 of 601 elements are NaN or infinite"):
            codec.encode(tensor)


@pytest.mark.usefixtures("_every_device_is_foreign")
def test_garbage_is_refused(codec: Codec) -> None:
    data = memoryview(b"\xff" * codec.size(5, torch.float32))
    with pytest.raises(MessageError, match=f"codec {codec.name}"):
        codec.decode(data, torch.float32, (5,), torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_makes_the_same_bytes() -> None:
    device = torch.device("cuda")
    for codec in map(codecs.find, codecs.names()):
        for tensor in (numbers(size, dtype, scale) for size in SIZES for dtype in FLOATS for scale in (1e-3, 1.0, 1e4)):
            data = bytes(codec.encode(tensor))
            assert bytes(codec.encode(tensor.to(device))) == data
            decoded = codec.decode(memoryview(data), tensor.dtype, tuple(tensor.shape), device)
            assert decoded.device.type == "cuda"
            assert torch.equal(decoded.cpu(), codec.decode(memoryview(data), tensor.dtype, tuple(tensor.shape)))
