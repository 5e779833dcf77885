"""The inner optimizer of a stage.

The update of a parameter depends on that parameter alone, so a cut cannot matter. The state is fp32, in tensors with
names, as checkpoints want them. `torch.optim` has the same arithmetic, bit for bit, but takes seconds to set up: it
imports a compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from distqat.sections import OptimizerSection


class Optimizer(Protocol):
    """Applies gradients to parameters."""

    def step(self, learning_rate: float) -> None:
        """Apply the gradients that the parameters hold; a parameter without one stays as it is."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that it remembers, by names such as `first/blocks.0.linear.weight`; the tensors themselves."""
        ...


class AdamW:
    """Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019; with the usual betas and epsilon."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        device = next((parameter.device for parameter in parameters.values()), None)
        self._steps = torch.zeros((), device=device)  # Done, of all parameters alike; the kernel wants it as fp32.
        self._first = _zeros(parameters)  # Running means of the gradients, by parameter.
        self._second = _zeros(parameters)  # Running means of their squares.

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update."""
        names = _with_gradient(self._parameters)
        if not names:
            return
        self._steps += 1
        # The fused kernel does in one pass what takes fifteen small operations for each tensor.
        torch._fused_adamw_(
            [self._parameters[name] for name in names],
            _gradients(self._parameters, names),
            [self._first[name] for name in names],
            [self._second[name] for name in names],
            [],
            [self._steps] * len(names),
            lr=learning_rate,
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            weight_decay=self._weight_decay,
            eps=self.EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """Steps done, and both running means."""
        return {"steps": self._steps, **_prefixed("first", self._first), **_prefixed("second", self._second)}


class MomentumSgd:
    """SGD with an L2 penalty and momentum, Nesterov's if asked for.

    Sutskever et al., On the importance of initialization and momentum in deep learning, 2013.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], weight_decay: float, momentum: float, nesterov: bool
    ) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self._momentum = momentum
        self._nesterov = nesterov and momentum > 0
        self._velocity = _zeros(parameters) if momentum else {}  # Decaying sums of the gradients, by parameter.

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update."""
        names = _with_gradient(self._parameters)
        if not names:
            return
        torch._fused_sgd_(
            [self._parameters[name] for name in names],
            _gradients(self._parameters, names),
            [self._velocity[name] for name in names] if self._velocity else [],
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=self._nesterov,
            maximize=False,
            is_first_step=False,
        )

    def state(self) -> dict[str, Tensor]:
        """The velocities; nothing without momentum."""
        return _prefixed("velocity", self._velocity)


def build_optimizer(section: OptimizerSection, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """The optimizer that the run asks for, over parameters by name."""
    if section.name == "sgd":
        return MomentumSgd(parameters, section.weight_decay, section.momentum, section.nesterov)
    return AdamW(parameters, section.weight_decay)


def _zeros(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in parameters.items()}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _with_gradient(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    return [name for name, parameter in parameters.items() if parameter.grad is not None]


def _gradients(parameters: Mapping[str, nn.Parameter], names: list[str]) -> list[Tensor]:
    gradients = (parameters[name].grad for name in names)
    return [gradient for gradient in gradients if gradient is not None]
