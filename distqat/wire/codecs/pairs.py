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
from distqat.wire.codecs.sums import add_decoded

LAYOUT = Layout(block=64, levels=1, per_byte=4)
BLOCK = LAYOUT.block

BOUND = 1.5
"""In means of the block; of 1 to 2 what is best on heavy tails and costs little on normal numbers."""

PIECE = 1 << 16
"""Elements that go through all steps of encoding before the next ones do."""

TILE = 128
"""Blocks that are turned into columns at once; more of them do not fit into the nearest cache."""

WORD = 8
"""Codes that are packed at once, of as many blocks."""

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
        for at in range(0, len(values), PIECE):
            chunk = values[at : at + PIECE]
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

    def add_part(self, data: memoryview, elements: int, begin: int, weight: float, total: Floats) -> float:
        """See Codec."""
        return add_decoded(self, data, elements, begin, weight, total)

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
    """False if one of the elements is NaN or infinite."""
    blocks = LAYOUT.num_blocks(len(chunk))
    columns, counts = _columns(chunk)
    is_negative = np.signbit(columns)
    sizes = np.abs(columns, out=SCRATCH.values[: columns.size].reshape(columns.shape))
    if np.maximum.reduce(sizes.view(np.int32), axis=None, initial=0) >= INFINITY:
        return False
    np.multiply(sizes, 1.0 / BLOCK, out=sizes)
    bound = _sums(sizes) / counts * np.float32(BOUND / BLOCK)
    is_high = np.greater_equal(sizes, bound, out=SCRATCH.codes[: columns.size].view(np.bool_).reshape(columns.shape))
    high = np.add.reduce(is_high.view(np.uint8), axis=0, dtype=np.uint8) * np.float32(1.0 / BLOCK)
    large = np.multiply(sizes, is_high, out=columns)
    np.subtract(sizes, large, out=sizes)
    means = np.empty((len(counts), 2), np.float32)
    np.divide(_sums(sizes), np.maximum(counts - high, 1.0 / BLOCK, dtype=np.float32), out=means[:, 0])
    np.divide(_sums(large), np.maximum(high, 1.0 / BLOCK, dtype=np.float32), out=means[:, 1])
    scales[:] = _halves(means[:blocks].reshape(-1), most).view(np.uint8)
    codes[:] = _packed(is_high.view(np.uint8), is_negative.view(np.uint8), len(chunk))[: len(codes)]
    return True


def _columns(chunk: Floats) -> tuple[Floats, Floats]:
    """The blocks side by side, element i of all of them in row i; and how many of its elements each has, over BLOCK.

    So nothing is computed along a block, which is too short for that. As many blocks as whole words of codes need; what
    no element is for is zero, and counts as if it were of a whole block.
    """
    whole, rest = divmod(len(chunk), BLOCK)
    width = -(-LAYOUT.num_blocks(len(chunk)) // WORD) * WORD
    columns: Floats = SCRATCH.source.numpy()[: BLOCK * width].reshape(BLOCK, width)
    counts = np.ones(width, np.float32)
    rows = chunk[: whole * BLOCK].reshape(whole, BLOCK)
    for at in range(0, whole, TILE):
        columns[:, at : min(at + TILE, whole)] = rows[at : at + TILE].T
    columns[:, whole:] = 0.0
    if rest:
        columns[:rest, whole] = chunk[whole * BLOCK :]
        counts[whole] = rest / BLOCK
    return columns, counts


def _sums(columns: Floats) -> Floats:
    """Of each block, by halves; the same bits on every machine."""
    half = len(columns) // 2
    sums: Floats = columns[:half] + columns[half:]
    while half > 1:
        half //= 2
        np.add(sums[:half], sums[half : 2 * half], out=sums[:half])
    first: Floats = sums[0]
    return first


def _halves(means: Floats, most: int) -> Words:
    """The bits of the nearest bf16, half to even, and at most these."""
    bits = means.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    words: Words = np.minimum(rounded, most).astype(np.uint16)
    return words


def _packed(high: Bytes, negative: Bytes, elements: int) -> Bytes:
    """Four codes in a byte, block after block; from columns of ones and zeros, of which `negative` is written over."""
    whole, rest = divmod(elements, BLOCK)
    # No code grows out of its byte, so eight of them are shifted at once.
    codes = negative.view(np.uint64)
    np.left_shift(codes, 1, out=codes)
    np.bitwise_or(codes, high.view(np.uint64), out=codes)
    if rest:
        negative[rest:, whole] = 0
    packed = codes[0::4].copy()
    for place in (1, 2, 3):
        np.bitwise_or(packed, codes[place::4] << (2 * place), out=packed)
    return np.ascontiguousarray(packed.view(np.uint8).T).reshape(-1)


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
