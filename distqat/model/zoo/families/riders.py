"""Lengths that ride along with a hidden tensor, as one more frame, since one tensor passes between two blocks.

Each bit of a length is the sign of a stretch of that frame, whose elements are as large as the largest of the tensor: a
codec may give them a block with any others, and rounds none of them to zero.

Shapes: B samples, T frames, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distqat.model import boundary

BITS = 16
"""Of a length; the width must be at least as much."""


def put_on(hidden_BTC: Tensor, lengths_B: Tensor) -> Tensor:
    """The tensor with one more frame, which has no gradient; the others' lies in memory as if they were alone."""
    if hidden_BTC.requires_grad:
        hidden_BTC.register_hook(boundary.canonical)  # type: ignore[no-untyped-call]
    bits = (lengths_B.unsqueeze(1) >> torch.arange(BITS, device=hidden_BTC.device)) & 1
    signs_BC = (2 * bits - 1)[:, _stretches(hidden_BTC)].to(hidden_BTC.dtype)
    # Numbers that are none stay in their own frames.
    loudest = hidden_BTC.detach().abs().amax().nan_to_num(1.0, posinf=1.0).clamp(min=1.0)
    return torch.cat([hidden_BTC, (signs_BC * loudest).unsqueeze(1)], dim=1)


def take_off(ridden_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """What `put_on` was given."""
    frame_BC = ridden_BTC[:, -1].detach().sign().float()
    sums = torch.zeros(len(frame_BC), BITS, device=frame_BC.device)
    bits = sums.index_add(1, _stretches(ridden_BTC), frame_BC) > 0
    lengths_B = (bits.long() << torch.arange(BITS, device=frame_BC.device)).sum(1)
    return boundary.canonical(ridden_BTC[:, :-1]), lengths_B


def _stretches(tensor: Tensor) -> Tensor:
    """Which bit each element of a frame shows."""
    width = tensor.shape[-1]
    return torch.arange(width, device=tensor.device) * BITS // width
