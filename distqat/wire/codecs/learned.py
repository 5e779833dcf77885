"""`learned`: integer codes of a step that the sending stage has learned, packed to their bits.

The stage rounds what it sends and hands over the codes themselves (`CodedTensor`), so nothing is rounded here, and
whoever receives them has the very numbers that the sender goes on with. The codec's name says how codes are written
(`learned4`, `learned8uc+`; see `Form`), so both ends of a hop agree on that when it opens. The bytes:

    steps      fp32, one or one for each channel
    offsets    fp32, as many, where the form has them
    codes      `bits` bits each, less the lowest of the grid, one behind the other from the lowest bit of the first
               byte on; what is left of the last byte is zero
    value    = code * step (+ offset), each one fp32 operation, then rounded to the tensor's type; in fp16 at most 65504
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distqat.errors import DistqatError, MessageError, TensorError
from distqat.wire.codecs.codec import CPU, Bytes, Floats, check_float, check_length, from_bytes, to_device
from distqat.wire.codecs.memory import CHUNK, SCRATCH, convert, empty
from distqat.wire_sections import LearnedCodes

LARGEST = 2.0**100
"""Of a step, and of an offset's magnitude: no code of theirs leaves bf16 or fp32."""

_NAME = re.compile(r"learned([2-8])(u?)(c?)(\+?)")
Words = npt.NDArray[Any]

_GROUP = 8
"""Codes that fill whole bytes together, whatever their bits."""


@dataclass(frozen=True)
class Form:
    """How codes are written."""

    bits: int
    """2 to 8."""
    is_signed: bool = True
    is_per_channel: bool = False
    """A step for each index of axis 1 of four (images), else of the last axis."""
    has_offset: bool = False

    @classmethod
    def of(cls, codes: LearnedCodes, has_offset: bool) -> Form:
        """As the settings have it."""
        return cls(codes.bits, codes.signed, codes.per == "channel", has_offset)

    @property
    def name(self) -> str:
        """Of the codec: `u` for unsigned, `c` for channels, `+` for an offset."""
        marks = (("u", not self.is_signed), ("c", self.is_per_channel), ("+", self.has_offset))
        return f"learned{self.bits}" + "".join(mark for mark, is_set in marks if is_set)

    @property
    def lowest(self) -> int:
        """The code that is written as zero."""
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    def num_steps(self, shape: tuple[int, ...]) -> int:
        """Of a tensor of that shape; one if it has no channels."""
        return shape[channel_axis(shape)] if self.is_per_channel and len(shape) > 1 else 1

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes that a tensor of that shape takes, exactly."""
        elements = math.prod(shape)
        head = 4 * self.num_steps(shape) * (2 if self.has_offset else 1)
        return head + _packed_bytes(elements, self.bits) if elements else 0


def form_of(codec: str) -> Form | None:
    """The form that a codec's name speaks of; None if it is another codec's."""
    found = _NAME.fullmatch(codec)
    return Form(int(found[1]), not found[2], bool(found[3]), bool(found[4])) if found else None


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """Rounded values of a boundary, as integers; anywhere else they are a tensor like any other."""

    form: Form
    codes: Tensor
    """uint8 [shape], less the form's lowest code."""
    step: Tensor
    """fp32 () or (channels,), on the same device."""
    offset: Tensor | None
    """Likewise, if the form has one."""
    dtype: torch.dtype
    """Of the values."""

    def __repr__(self) -> str:
        return f"<CodedTensor {self.form.name} {self.shape}, {self.dtype}>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return tuple(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return self.codes.numel() * self.dtype.itemsize

    def numel(self) -> int:
        """Elements."""
        return self.codes.numel()

    def values(self) -> Tensor:
        """What the codes stand for: a new tensor [shape] on their device."""
        result = self.codes.float().add_(self.form.lowest).mul_(self._beside(self.step))
        if self.offset is not None:
            result.add_(self._beside(self.offset))
        if self.dtype == torch.float16:
            most = torch.finfo(torch.float16).max
            result.clamp_(-most, most)
        return result.to(self.dtype)

    def _beside(self, step: Tensor) -> Tensor:
        if not step.dim() or len(self.shape) < 2:
            return step
        sizes = [1] * len(self.shape)
        sizes[channel_axis(self.shape)] = -1
        return step.view(sizes)


def encode(coded: CodedTensor) -> memoryview:
    """The bytes. Raises TensorError for a step or offset that is not finite or too large."""
    form, elements = coded.form, coded.numel()
    out = np.empty(form.size(coded.shape), np.uint8)
    heads = [coded.step] if coded.offset is None else [coded.step, coded.offset]
    numbers: Floats = torch.cat([head.detach().reshape(-1) for head in heads]).float().cpu().numpy()
    _check(form, numbers, TensorError)
    out[: numbers.nbytes] = numbers.view(np.uint8)
    codes: Bytes = coded.codes.detach().reshape(-1).cpu().numpy()
    _pack(codes, out[numbers.nbytes :], elements, form.bits)
    return out.data


def decode(
    form: Form, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
) -> Tensor:
    """The values, a new tensor on that device. Raises MessageError, before anything large is allocated."""
    check_float(form.name, dtype, MessageError)
    check_length(data, form.size(shape), dtype, shape)
    elements, steps = math.prod(shape), form.num_steps(shape)
    if not elements:
        return torch.empty(shape, dtype=dtype, device=device)
    source = from_bytes(data)
    split = 4 * steps * (2 if form.has_offset else 1)
    numbers: Floats = np.frombuffer(source[:split].tobytes(), np.float32)
    _check(form, numbers, MessageError)
    codes = _unpack(source[split:], elements, form.bits)
    step, offset = numbers[:steps], numbers[steps:] if form.has_offset else None
    if device.type != CPU.type:
        there = torch.from_numpy(numbers.copy()).to(device).view(-1, steps)
        heads = [head if steps > 1 else head[0] for head in there]
        coded = CodedTensor(
            form, to_device(codes, device).view(shape), heads[0], heads[1] if len(heads) > 1 else None, dtype
        )
        return coded.values()
    out = empty(shape, dtype)
    _spread(form, codes, step, offset, out)
    return out


def channel_axis(shape: tuple[int, ...]) -> int:
    """Of a tensor with the batch in front: 1 of images, else the last."""
    return 1 if len(shape) == 4 else len(shape) - 1


def _packed_bytes(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)


def _check(form: Form, numbers: Floats, error: type[DistqatError]) -> None:
    """Raises for steps or offsets that no boundary can have."""
    steps = numbers[: len(numbers) // 2] if form.has_offset else numbers
    # NaN is neither.
    if not (np.abs(numbers) <= LARGEST).all() or not (steps > 0).all():
        raise error(f"codec {form.name}: a step or an offset that is not finite, not positive or beyond 2^100")


def _pack(codes: Bytes, out: Bytes, elements: int, bits: int) -> None:
    """Write codes [num_elements] to their bits, 8 of them in one 64-bit word at a time."""
    if bits == 8:
        out[:] = codes
        return
    for begin in range(0, elements, CHUNK):
        part = codes[begin : begin + CHUNK]
        words = np.zeros(-(-len(part) // _GROUP), np.uint64)
        words.view(np.uint8)[: len(part)] = part
        # Pairs of codes, of pairs, of fours: the upper half moves down beside the lower one.
        for kind, width in ((np.uint16, bits), (np.uint32, 2 * bits), (np.uint64, 4 * bits)):
            places: Words = words.view(kind)
            low = (1 << width) - 1
            places[:] = (places & low) | ((places >> (places.itemsize * 4 - width)) & (low << width))
        place = out[begin * bits // 8 :][: _packed_bytes(len(part), bits)]
        place[:] = words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)[: len(place)]


def _unpack(data: Bytes, elements: int, bits: int) -> Bytes:
    """Codes [num_elements]. Raises MessageError if what is left of the last byte is not zero."""
    if bits == 8:
        return data
    codes = np.empty(elements, np.uint8)
    for begin in range(0, elements, CHUNK):
        part = codes[begin : begin + CHUNK]
        rows = np.zeros((-(-len(part) // _GROUP), 8), np.uint8)
        source = data[begin * bits // 8 :][: _packed_bytes(len(part), bits)]
        whole = len(source) // bits
        rows[:whole, :bits] = source[: whole * bits].reshape(-1, bits)
        if whole < len(rows):
            rows[whole, : len(source) - whole * bits] = source[whole * bits :]
        words = rows.view(np.uint64)
        for kind, width in ((np.uint64, 4 * bits), (np.uint32, 2 * bits), (np.uint16, bits)):
            places: Words = words.view(kind)
            low = (1 << width) - 1
            half = places.itemsize * 4
            places[:] = (places & low) | ((places << (half - width)) & (low << half))
        found = rows.reshape(-1)
        if found[len(part) :].any():
            raise MessageError(f"codes of {bits} bits with something behind the last of {elements}")
        part[:] = found[: len(part)]
    return codes


def _spread(form: Form, codes: Bytes, step: Floats, offset: Floats | None, out: Tensor) -> None:
    """What `CodedTensor.values` says, on this thread alone: into a CPU tensor [shape]."""
    inner = 1
    if len(step) > 1:
        inner = math.prod(out.shape[channel_axis(tuple(out.shape)) + 1 :])
    period = len(step) * inner
    stride = max(1, CHUNK // period) * period
    flat = out.view(-1)
    multiply, add = (partial(_across, head, inner) for head in (step, offset if offset is not None else step))
    for begin in range(0, len(flat), stride):
        place = flat[begin : begin + stride]
        values = _room(place)
        np.add(codes[begin : begin + stride], np.float32(form.lowest), out=values)
        multiply(np.multiply, values)
        if offset is not None:
            add(np.add, values)
        if out.dtype == torch.float16:
            most = torch.finfo(torch.float16).max
            np.clip(values, -most, most, out=values)
        if out.dtype != torch.float32:
            convert(torch.from_numpy(values), place)


def _room(place: Tensor) -> Floats:
    """Where to compute fp32 values: in place, or beside it."""
    if place.dtype == torch.float32:
        direct: Floats = place.numpy()
        return direct
    return SCRATCH.values[: len(place)] if len(place) <= CHUNK else np.empty(len(place), np.float32)


def _across(numbers: Floats, inner: int, operation: np.ufunc, values: Floats) -> None:
    """Each stretch of `inner` values by the number of its channel."""
    rows = values.reshape(-1, len(numbers), inner) if inner > 1 else values.reshape(-1, len(numbers))
    operation(rows, numbers[:, None] if inner > 1 else numbers, out=rows)
