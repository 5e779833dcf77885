from __future__ import annotations

import pytest
import torch

from distqat.model import boundary


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).view(2, 3, 4).transpose(0, 1),
        torch.ones(1, 1).expand(4, 5),
        torch.arange(100.0)[1:],
        torch.zeros(2, 3, 1, 1).to(memory_format=torch.channels_last),
        torch.zeros(0, 3),
        torch.tensor(1.0),
    ],
)
def test_canonical_is_what_the_wire_delivers(tensor: torch.Tensor) -> None:
    delivered = torch.empty(tensor.shape).copy_(tensor)
    canonical = boundary.canonical(tensor)
    assert torch.equal(canonical, delivered)
    assert canonical.stride() == delivered.stride()
    assert canonical.data_ptr() % 64 == 0


def test_what_is_canonical_is_not_copied() -> None:
    tensor = torch.zeros(4, 5)
    assert boundary.canonical(tensor) is tensor


def test_gradients_come_back_canonical() -> None:
    seen: list[torch.Tensor] = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            seen.append(gradient)
            return gradient

    hidden = Look.apply(torch.ones(2, 3, 4, 4, requires_grad=True))
    boundary.cross(hidden).mean((2, 3)).sum().backward()
    assert seen[0].is_contiguous()
