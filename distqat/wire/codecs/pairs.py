"""`int2`: blocks of elements, each with two magnitudes of its own; an element is one of them, or its negative.

Made for rounds with error feedback: an element comes out as the mean of those that are like it in its block, so no
vector grows, and a few large elements among small ones keep their size. Rounding to evenly spaced numbers has twice the
error on normal data, and five times on Student-t(3).

    all magnitudes, four bytes for each block: low, high, as bf16, little-endian
    then all codes, four in a byte, the first lowest: 1 if it is high, plus 2 if it is negative

    bound = 1.5 * mean |x|;   high: |x| >= bound;   low, high = mean |x| of these, to nearest bf16, half to even

All in fp32, each operation rounded to nearest; sums over |x| / 64 by halves: elements 0 and 32, 1 and 33, ... first.
The last block may be short; its sums run over zeros too, its means do not.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from distqat.errors import MessageError, TensorError
from distqat.wire.codecs.codec import CPU, Bytes, Floats, check_float, check_length, flat, from_bytes, refuse
from distqat.wire.codecs.half import most_bits
from distqat.wire.codecs.layout import Layout
from distqat.wire.codecs.memory import CHUNK, SCRATCH, convert, empty

LAYOUT = Layout(block=64, levels=1, per_byte=4)
BLOCK = LAYOUT.block

BOUND = 1.5
"""In means of the block; of 1 to 2 what is best on heavy tails and costs little on normal numbers."""

INFINITY = 0x7F800000

Words = npt.NDArray[np.uint16]


class PairCodec:
    """0.3125 bytes for each element. NaN and infinity do not pass."""

    name = "int2"
    block = BLOCK
    growth = 1.0 + 2.0**-8  # Means are never longer than what they are of, and then they are rounded.

    def size(self, elements: int, dtype: torch.dtype) -> int:
        """See Codec."""
        return LAYOUT.size(elements)

    def encode(self, tensor: torch.Tensor) -> memoryview:
        """See Codec."""
        out = np.empty(LAYOUT.size(tensor.numel()), np.uint8).data
        self.encode_into(tensor, out)
        return out

    def encode_into(self, tensor: torch.Tensor, out: memoryview) -> None:
        """See Codec. Computed on the CPU, wherever the tensor is."""
        check_float(self.name, tensor.dtype, TensorError)
        values = flat(tensor).to(CPU)
        if tensor.dtype != torch.float32:
            shorter, values = values, empty((tensor.numel(),), torch.float32)
            convert(shorter, values)
        self._encode(values.numpy(), out, tensor.numel(), 0, most_bits(torch.bfloat16, tensor.dtype))

    def decode(
        self, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
    ) -> torch.Tensor:
        """See Codec."""
        elements = math.prod(shape)
        check_float(self.name, dtype, MessageError)
        check_length(data, LAYOUT.size(elements), dtype, shape)
        if not self._is_sound(data, elements, 0, elements, dtype):
            raise self._unsound(dtype)
        whole = empty((elements,), torch.float32)
        self.decode_part(data, elements, 0, whole.numpy())
        if dtype != torch.float32:
            shorter = empty((elements,), dtype)
            convert(whole, shorter)
            whole = shorter
        return whole.view(shape).to(device)

    def cut(self, data: memoryview, elements: int, begin: int, end: int) -> list[memoryview]:
        """See Codec."""
        scales, codes = LAYOUT.cut(elements, begin, end)
        return [data[scales], data[codes]]

    def encode_part(self, values: Floats, data: memoryview, elements: int, begin: int) -> None:
        """See Codec."""
        self._encode(values, data, elements, begin, most_bits(torch.bfloat16, torch.float32))

    def _encode(self, values: Floats, data: memoryview, elements: int, begin: int, most: int) -> None:
        """`most` are the bits of the largest bf16 that may come out."""
        out = from_bytes(data)
        for at in range(0, len(values), CHUNK):
            chunk = values[at : at + CHUNK]
            scales, codes = LAYOUT.cut(elements, begin + at, begin + at + len(chunk))
            if not _encode(chunk, out[scales], out[codes], most):
                refuse(self.name, torch.from_numpy(values), torch.finfo(torch.float32).max)

    def decode_part(self, data: memoryview, elements: int, begin: int, out: Floats) -> None:
        """See Codec."""
        if not self.is_sound(data, elements, begin, begin + len(out)):
            raise self._unsound(torch.float32)
        source = from_bytes(data)
        for at in range(0, len(out), CHUNK):
            chunk = out[at : at + CHUNK]
            scales, codes = LAYOUT.cut(elements, begin + at, begin + at + len(chunk))
            _decode(source[scales], source[codes], chunk)

    def is_sound(self, data: memoryview, elements: int, begin: int, end: int) -> bool:
        """See Codec."""
        return self._is_sound(data, elements, begin, end, torch.float32)

    def _is_sound(self, data: memoryview, elements: int, begin: int, end: int, dtype: torch.dtype) -> bool:
        scales, _ = LAYOUT.cut(elements, begin, end)
        # As unsigned integers: negative ones, which are never written, are too large as well.
        return int(np.maximum.reduce(np.frombuffer(bytes(data[scales]), np.uint16), initial=0)) <= most_bits(
            torch.bfloat16, dtype
        )

    def _unsound(self, dtype: torch.dtype) -> MessageError:
        return MessageError(f"codec {self.name}: a magnitude that no finite {dtype} tensor has")


def _encode(chunk: Floats, scales: Bytes, codes: Bytes, most: int) -> bool:
    """Write the bytes of at most CHUNK elements. False if one of them is NaN or infinite."""
    elements = len(chunk)
    blocks = LAYOUT.num_blocks(elements)
    counts = np.full(blocks, 1.0, np.float32)  # Elements of each block, in whole blocks.
    counts[-1:] = (elements - BLOCK * (blocks - 1)) / BLOCK
    sizes = SCRATCH.values[: blocks * BLOCK]
    np.abs(chunk, out=sizes[:elements])
    sizes[elements:] = 0.0
    if np.maximum.reduce(sizes.view(np.int32), initial=0) >= INFINITY:
        return False
    np.multiply(sizes, 1.0 / BLOCK, out=sizes)
    rows = sizes.reshape(blocks, BLOCK)
    bound = _sums(rows) / counts * np.float32(BOUND / BLOCK)
    is_high = SCRATCH.codes[: blocks * BLOCK].view(np.bool_).reshape(blocks, BLOCK)
    np.greater_equal(rows, bound[:, None], out=is_high)
    high = np.add.reduce(is_high, axis=1, dtype=np.float32) * np.float32(1.0 / BLOCK)
    large = SCRATCH.source.numpy()[: blocks * BLOCK].reshape(blocks, BLOCK)
    np.multiply(rows, is_high, out=large)
    np.subtract(rows, large, out=rows)
    means = np.empty((blocks, 2), np.float32)
    np.divide(_sums(rows), np.maximum(counts - high, 1.0 / BLOCK, dtype=np.float32), out=means[:, 0])
    np.divide(_sums(large), np.maximum(high, 1.0 / BLOCK, dtype=np.float32), out=means[:, 1])
    scales[:] = _halves(means.reshape(-1), most).view(np.uint8)
    codes[:] = _packed(chunk, is_high.view(np.uint8).reshape(-1))[: len(codes)]
    return True


def _sums(rows: Floats) -> Floats:
    """Of each block, by halves; the same bits on every machine."""
    half = rows.shape[1] // 2
    sums: Floats = rows[:, :half] + rows[:, half:]
    while half > 1:
        half //= 2
        np.add(sums[:, :half], sums[:, half : 2 * half], out=sums[:, :half])
    return sums[:, 0]


def _halves(means: Floats, most: int) -> Words:
    """The bits of the nearest bf16, half to even, and at most these."""
    bits = means.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    words: Words = np.minimum(rounded, most).astype(np.uint16)
    return words


def _packed(chunk: Floats, codes: Bytes) -> Bytes:
    """Four codes in a byte; `codes` say which are high, and are written over."""
    np.add(codes[: len(chunk)], np.signbit(chunk).view(np.uint8) << 1, out=codes[: len(chunk)])
    codes[len(chunk) :] = 0
    words = codes.view(np.uint32)
    packed = words >> 6
    np.bitwise_or(packed, words, out=packed)
    np.bitwise_or(packed, packed >> 12, out=packed)
    return packed.astype(np.uint8)


def _decode(scales: Bytes, codes: Bytes, out: Floats) -> None:
    blocks = LAYOUT.num_blocks(len(out))
    low, high = (np.frombuffer(scales.tobytes(), np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(-1, 2).T
    padded = np.zeros(blocks * BLOCK // LAYOUT.per_byte, np.uint8)
    padded[: len(codes)] = codes
    lows, highs = _tables()
    rows, larger = SCRATCH.values[: blocks * BLOCK], SCRATCH.source.numpy()[: blocks * BLOCK]
    np.take(lows, padded, axis=0, out=rows.reshape(-1, 4), mode="clip")
    np.take(highs, padded, axis=0, out=larger.reshape(-1, 4), mode="clip")
    np.multiply(rows.reshape(blocks, BLOCK), low[:, None], out=rows.reshape(blocks, BLOCK))
    np.multiply(larger.reshape(blocks, BLOCK), high[:, None], out=larger.reshape(blocks, BLOCK))
    # One of the two is zero.
    np.add(rows[: len(out)], larger[: len(out)], out=out)


@cache
def _tables() -> tuple[Floats, Floats]:
    """By what low and high are multiplied for each of the four codes in a byte [256, 4]: 0, 1 or -1."""
    codes = np.arange(256)[:, None] >> np.array([0, 2, 4, 6])
    sign = np.where(codes & 2, -1.0, 1.0)
    return (sign * (1 - (codes & 1))).astype(np.float32), (sign * (codes & 1)).astype(np.float32)
