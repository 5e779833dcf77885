"""The outer step: local values to what a sibling contributes, an average to the next anchor.

A vector is flat fp32 on the CPU, `num_elements` long: the parameters of the fragment first (`num_parameters` elements),
then its float buffers (running statistics). Everything here makes new tensors; nothing that was committed changes.

Two kinds of round. In the **warm-up** siblings contribute their local values themselves, and the average is the new
anchor: with one contributor the round changes no bit, which anchor - (anchor - local) would not promise. In **DiLoCo**
(Douillard et al. 2023, arXiv:2311.08105) they contribute pseudo-gradients, and the outer optimizer is SGD with Nesterov
momentum (Sutskever et al. 2013). Buffers are averaged plainly in both.

Every multiplication and addition is an operation of its own and rounded by itself: no fused multiply-add, so that two
different CPUs agree to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distqat.model import state
from distqat.sections import SyncSection


@dataclass(frozen=True)
class Phase:
    """How a round is taken."""

    is_plain: bool
    """Local values are averaged (warm-up), not pseudo-gradients."""
    steps: int
    """Steps of a pipeline from the round before to this one."""
    learning_rate: float
    momentum: float


def phase(number: int, sync: SyncSection) -> Phase:
    """How round `number` is taken: the first `warmup_steps` rounds plainly and after every step, then DiLoCo."""
    if number < sync.warmup_steps:
        return Phase(is_plain=True, steps=1, learning_rate=1.0, momentum=0.0)
    return Phase(False, sync.inner_steps, sync.outer_learning_rate, sync.outer_momentum)


def steps_between(number: int, sync: SyncSection) -> int:
    """Steps that a pipeline does before round `number` is due."""
    return phase(number, sync).steps


@dataclass(frozen=True, eq=False)
class OuterState:
    """What a sibling has committed: `anchor` [num_elements], `momentum` [num_parameters], `round` rounds so far."""

    anchor: torch.Tensor
    momentum: torch.Tensor
    round: int
    digest: str
    """Of round, anchor and momentum; equal digests mean equal bits."""

    def __repr__(self) -> str:
        return f"<OuterState round {self.round} {self.digest[:8]}>"

    @property
    def num_parameters(self) -> int:
        """Elements of the anchor that are parameters; the rest are buffers."""
        return self.momentum.numel()

    @property
    def num_elements(self) -> int:
        """Elements of the anchor."""
        return self.anchor.numel()

    @classmethod
    def of(cls, anchor: torch.Tensor, momentum: torch.Tensor, number: int) -> OuterState:
        """The state of these numbers, with its digest worked out. Keeps the tensors."""
        return cls(anchor, momentum, number, state.digest(number, anchor, momentum))

    @classmethod
    def founding(cls, local: torch.Tensor, num_parameters: int) -> OuterState:
        """Fresh numbers [num_elements] before the first round: no momentum yet. Copies them."""
        return cls.of(local.clone(), torch.zeros(num_parameters), 0)


def delta(outer: OuterState, local: torch.Tensor, how: Phase) -> torch.Tensor:
    """What a sibling with these local values contributes [num_elements].

    DiLoCo: the pseudo-gradient anchor - local for parameters, local values for buffers. Warm-up: all local values.
    """
    if how.is_plain:
        return local.clone()
    parameters = outer.num_parameters
    return torch.cat((outer.anchor[:parameters] - local[:parameters], local[parameters:]))


def apply(outer: OuterState, average: torch.Tensor, how: Phase) -> OuterState:
    """The state after a round with this average of contributions [num_elements].

    m <- mu m + d;  theta <- theta - eta (d + mu m). In the warm-up theta <- d, and momentum stays as it is.
    """
    if how.is_plain:
        return OuterState.of(average.clone(), outer.momentum, outer.round + 1)
    gradient, buffers = average[: outer.num_parameters], average[outer.num_parameters :]
    momentum = outer.momentum * how.momentum
    momentum = momentum + gradient
    step = momentum * how.momentum
    step = gradient + step
    step = step * how.learning_rate
    parameters = outer.anchor[: outer.num_parameters] - step
    return OuterState.of(torch.cat((parameters, buffers)), momentum, outer.round + 1)
