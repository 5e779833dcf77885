"""What every codec can do, and what all of them need for it."""

from __future__ import annotations

from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch

from distqat.errors import DistqatError, MessageError, TensorError

CPU = torch.device("cpu")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Codec(Protocol):
    """Turns the elements of a tensor into bytes and back. Holds no state; any thread may call it."""

    @property
    def name(self) -> str:
        """As in the settings and in headers."""
        ...

    @property
    def block(self) -> int:
        """Elements that are encoded together; a part of a tensor must begin at a multiple of it."""
        ...

    @property
    def growth(self) -> float:
        """How many times as long a vector may be at most, by its Euclidean norm, after it was encoded and decoded."""
        ...

    def size(self, elements: int, dtype: torch.dtype) -> int:
        """Bytes that so many elements take, exactly."""
        ...

    def encode(self, tensor: torch.Tensor) -> memoryview:
        """Bytes of a tensor of any shape and stride, on any device; without a copy where codec and tensor allow.

        Raises TensorError for NaN, infinity, what is too large, and elements that are no float of at most 32 bits; but
        `none` takes everything.
        """
        ...

    def encode_into(self, tensor: torch.Tensor, out: memoryview) -> None:
        """The same into `out`, which has exactly `size` writable bytes, at any address. Raises TensorError."""
        ...

    def decode(
        self, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
    ) -> torch.Tensor:
        """A new tensor on that device; of `none` it may share memory with `data`, if that is writable.

        Raises MessageError when the length does not fit, or when a number in `data` is NaN, infinite or too large for
        `dtype`; but `none` gives what is there.
        """
        ...

    def cut(self, data: memoryview, elements: int, begin: int, end: int) -> list[memoryview]:
        """The bytes of elements `begin` to `end` among those of `elements` fp32 ones, as views.

        One behind the other they are what `encode` makes of these elements alone.
        """
        ...

    def encode_part(self, values: Floats, data: memoryview, elements: int, begin: int) -> None:
        """Write fp32 values into the bytes of `elements`, as those from `begin` on. Raises TensorError."""
        ...

    def decode_part(self, data: memoryview, elements: int, begin: int, out: Floats) -> None:
        """Fill `out` with fp32 values from `begin` on, out of the bytes of `elements`. Raises MessageError."""
        ...

    def add_part(self, data: memoryview, elements: int, begin: int, weight: float, total: Floats) -> float:
        """Decode the fp32 values v of elements `begin` to `begin + len(total)`, and add them: fl(total + fl(v weight)).

        Returns the sum of v^2 in fp64, in no order that is promised; NaN or infinite if a value is. A total of -0.0
        becomes the product bit for bit. Raises MessageError.
        """
        ...

    def is_sound(self, data: memoryview, elements: int, begin: int, end: int) -> bool:
        """Whether the bytes of these elements, among those of `elements`, decode to finite fp32 numbers."""
        ...


def check_float(codec: str, dtype: torch.dtype, error: type[DistqatError]) -> None:
    """Raises the error for elements that a lossy codec does not take; integers always travel as `none`."""
    if dtype not in FLOATS:
        raise error(f"codec {codec} is for float32, bfloat16 and float16, not for {dtype}")


def check_length(data: memoryview, expected: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises MessageError; before anything is allocated."""
    if data.nbytes != expected:
        raise MessageError(f"{data.nbytes} bytes for a {dtype} tensor of shape {shape}, which takes {expected}")


def refuse(codec: str, tensor: torch.Tensor, limit: float) -> NoReturn:
    """Raises TensorError that says what the codec cannot hold. Looks at every element, but only when there is one."""
    wrong = int((~tensor.isfinite()).sum())
    if wrong:
        raise TensorError(f"codec {codec}: {wrong} of {tensor.numel()} elements are NaN or infinite")
    largest = float(tensor.abs().max())
    raise TensorError(f"codec {codec}: {largest:g} is too large, the largest {tensor.dtype} it holds is {limit:g}")


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in their order [num_elements], without a gradient; copied only if they do not lie so."""
    return tensor.detach().reshape(-1)


def as_bytes(tensor: torch.Tensor) -> Bytes:
    """The memory of a contiguous CPU tensor."""
    array: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return array


def from_bytes(data: memoryview) -> Bytes:
    """A view of bytes, writable if they are."""
    return np.frombuffer(data, np.uint8)


def to_device(data: Bytes, device: torch.device) -> torch.Tensor:
    """A copy [num_bytes] on a device, aligned for every element type."""
    copy = torch.empty(len(data), dtype=torch.uint8, pin_memory=device.type == "cuda")
    copy.numpy()[:] = data
    return copy.to(device)
