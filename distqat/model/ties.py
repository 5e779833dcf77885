"""A tensor that the first block of a model and its last one have in common, such as the embedding of a tied head.

It belongs to the first block, the **lender**: there it is a parameter like any other, which the optimizer steps, rounds
average and checkpoints hold. The last block, the **borrower**, computes with what it was lent, and gives the gradient
back at the end of a step. So there is one truth, and nothing can drift apart: a stage that takes over the last seat is
lent the tensor before its first microbatch.

The gradients of both ends are summed up over the microbatches apart, and added once, whether a cut lies between them or
not. In a stage that has both, the borrower's tensor is the lender's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distqat.errors import ModelError, StaleError
from distqat.model import boundary, checks
from distqat.model.zoo.blocks import StagePlan


class BorrowedLinear(nn.Module):
    """A linear layer without bias, whose weight [outputs, inputs] belongs to another block: no parameter of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.model = torch.empty((outputs, inputs), device="meta")  # What the weight looks like.
        self.weight: Tensor | None = None  # A leaf that collects its gradient; None until it is lent.

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        assert self.weight is not None
        return F.linear(hidden, self.weight)


class Tie:
    """What one stage has to do with the tie of its model: it lends, borrows, both, passes on, or there is none.

    On the device's thread, as the stage itself.
    """

    def __init__(self, plan: StagePlan, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Of the stage of this plan, whose blocks are built."""
        self.edition = 0  # Counts up whenever what is lent may have changed.
        self.travels = plan.is_tied and plan.num_stages > 1  # Whether the ends lie in different stages.
        self._name = plan.name
        self._device = device
        # None where the tensor belongs to another stage, or to none.
        self._lent = _lent(plan, blocks) if plan.is_tied and plan.index == 0 else None
        # None where another stage has the borrower, or none.
        self._borrower = _borrower(plan, blocks) if plan.is_tied and plan.is_last else None
        self._returned: Tensor | None = None  # The borrower's gradient, if it travelled; None until it is here.
        self._is_united = False  # Whether the gradients of both ends are added.
        if self._lent is not None and self._borrower is not None:
            self._borrower.weight = self._lent.detach().requires_grad_()

    def __repr__(self) -> str:
        ends = [name for name, end in (("lends", self._lent), ("borrows", self._borrower)) if end is not None]
        return f"<Tie of {self._name}: {' and '.join(ends) or 'no end'}, edition {self.edition}>"

    def held(self) -> list[Tensor]:
        """What is there beside parameters."""
        return [] if self._borrower is None or self._borrower.weight is None else [self._borrower.weight]

    @property
    def nbytes(self) -> int:
        """Of the tensor, where there is an end of it."""
        if self._lent is not None:
            return self._lent.nbytes
        return self._borrower.model.nbytes if self._borrower is not None else 0

    def expect_lent(self) -> None:
        """Raises StaleError where a borrower was never lent its tensor."""
        if self._borrower is not None and self._borrower.weight is None:
            raise StaleError(f"stage {self._name} was not lent the tensor that it has in common with the first one")

    def touch(self, tensors: Iterable[Tensor]) -> None:
        """These tensors of the stage are about to be changed."""
        if any(tensor is self._lent for tensor in tensors):
            self.edition += 1

    def lend(self) -> Tensor:
        """A copy of the tensor, in the lender."""
        assert self._lent is not None
        return self._lent.detach().clone()

    def borrow(self, tensor: Tensor) -> None:
        """What the lender has lent, in the borrower; that before is given up, with its gradient. Keeps the tensor.

        Raises TensorError for what does not fit or is not finite, StaleError amid a step; nothing is changed then.
        """
        assert self._borrower is not None
        if any(held.grad is not None for held in self.held()):
            raise StaleError(f"stage {self._name} is lent another tensor while a step goes on")
        checks.expect_like(f"tied tensor of stage {self._name}", tensor, self._borrower.model)
        self._borrower.weight = boundary.canonical(tensor.detach().to(self._device)).requires_grad_()

    def give_back(self) -> Tensor:
        """The borrower's gradient of the whole step, still multiplied by the loss scale."""
        assert self._borrower is not None
        weight = self._borrower.weight
        assert weight is not None
        return torch.zeros_like(weight) if weight.grad is None else boundary.canonical(weight.grad)

    def take_back(self, gradient: Tensor, may_overflow: bool) -> None:
        """What the borrower has given back, in the lender. Raises TensorError for what does not fit."""
        assert self._lent is not None
        checks.expect_like(f"tied gradient for stage {self._name}", gradient, self._lent, may_overflow)
        self._returned = gradient.to(self._device)

    def unite(self) -> None:
        """When all gradients of a step are here: those of both ends become the lender's, once. Raises StaleError while
        the borrower's is missing."""
        if self._lent is None or self._is_united:
            return
        returned = self._returned if self.travels else self.give_back()
        if returned is None:
            raise StaleError(f"stage {self._name} lacks the last stage's gradient of the tensor that they share")
        if self._lent.grad is None:
            self._lent.grad = torch.zeros_like(self._lent)
        self._lent.grad.add_(returned)
        self._is_united = True

    def end_step(self) -> None:
        """Gradients are forgotten."""
        self._returned, self._is_united = None, False
        for tensor in self.held():
            tensor.grad = None


def _lent(plan: StagePlan, blocks: Sequence[nn.Module]) -> nn.Parameter:
    name = plan.blocks[0].lends
    assert name is not None
    try:
        return blocks[0].get_parameter(name)
    except AttributeError:
        raise ModelError(
            f"block {plan.blocks[0].name} of model {plan.model} has no parameter {name!r} to lend"
        ) from None


def _borrower(plan: StagePlan, blocks: Sequence[nn.Module]) -> BorrowedLinear:
    found = [module for module in blocks[-1].modules() if isinstance(module, BorrowedLinear)]
    if len(found) != 1:
        raise ModelError(f"block {plan.blocks[-1].name} of model {plan.model} borrows, but in {len(found)} layers")
    return found[0]
