"""int8 and int4 by torch operations on whatever device the tensor is: the same bytes as the kernels of the CPU make.

Only what is correctly rounded everywhere is used. So nothing is divided by a Python number, nor a Python number by a
tensor: torch multiplies by a reciprocal instead, on a GPU or everywhere.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from distqat.wire.codecs.layout import FLOOR, Layout


def encode(values: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The bytes [size] of values [num_elements]; a scale that is not finite says that one of them is not."""
    rows = _rows(values.float(), layout.block)
    largest = torch.linalg.vector_norm(rows, ord=float("inf"), dim=1).clamp_(min=FLOOR)
    inverse = torch.full_like(largest, layout.levels).div_(largest)
    codes = (rows * inverse[:, None]).round_().to(torch.int8).view(-1)[: len(values)]
    scales = largest.mul_(1 / layout.levels)
    return torch.cat([scales.view(torch.uint8), (codes if layout.per_byte == 1 else _pack(codes)).view(torch.uint8)])


def decode(data: torch.Tensor, elements: int, layout: Layout) -> torch.Tensor:
    """fp32 values [elements] of bytes [size]."""
    split = layout.scale_bytes(elements)
    scales, codes = data[:split].view(torch.float32), data[split:]
    numbers = codes.view(torch.int8) if layout.per_byte == 1 else _unpack(codes)[:elements]
    rows = _rows(numbers.float(), layout.block)
    return (rows * scales[:, None]).view(-1)[:elements]


def _rows(values: torch.Tensor, block: int) -> torch.Tensor:
    """[num_elements] to [num_blocks, block], the last one filled up with zeros."""
    missing = -len(values) % block
    return (pad(values, (0, missing)) if missing else values).view(-1, block)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """Two in a byte: [num_elements] to [(num_elements + 1) // 2]."""
    pairs = _rows(codes, 2).add(8).view(torch.uint8)
    return pairs[:, 0] | (pairs[:, 1] << 4)


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack([packed & 15, packed >> 4], dim=1).view(-1).view(torch.int8).sub_(8)
