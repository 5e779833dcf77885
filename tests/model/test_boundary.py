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

    hidden = torch.ones(2, 3, 4, 4, requires_grad=True) * 2
    crossed = boundary.cross(hidden)
    crossed.register_hook(seen.append)  # type: ignore[no-untyped-call]
    torch.autograd.backward(crossed.mean((2, 3)).sum())
    assert seen[0].is_contiguous()


def test_customs_are_passed_both_ways_and_not_differentiated() -> None:
    seen: list[torch.Tensor] = []

    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor * 2

    leaf = boundary.enter(torch.ones(2, 2).t(), doubled)
    assert leaf.is_leaf
    crossed = boundary.cross(leaf * 3, torch.bfloat16, doubled)
    assert crossed.dtype == torch.bfloat16
    assert crossed.tolist() == [[6.0, 6.0], [6.0, 6.0]]
    torch.autograd.backward(crossed.float().sum())
    assert leaf.grad is not None
    # 1 is doubled at the crossing, multiplied by 3, and doubled on its way out.
    assert leaf.grad.tolist() == [[12.0, 12.0], [12.0, 12.0]]
    assert [tensor.dtype for tensor in seen] == [torch.bfloat16, torch.bfloat16, torch.float32]
