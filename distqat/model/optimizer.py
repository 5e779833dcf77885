"""The inner optimizer of a stage.

The update of a parameter depends on that parameter alone, so a cut cannot matter. The state is fp32, in tensors with
names, as checkpoints want them. `torch.optim` has the same arithmetic, bit for bit, but takes seconds to set up: it
imports a compiler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Steady:
    """Parameters that do not decay, and learn at another rate: the step sizes of quantizers."""

    names: frozenset[str] = frozenset()
    rate: float = 1.0
    """Of the learning rate of the others."""


@dataclass(frozen=True)
class _Group:
    """Parameters that have a gradient, and how they are updated."""

    names: list[str]
    learning_rate: float
    weight_decay: float


class AdamW:
    """Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019; with the usual betas and epsilon."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float, steady: Steady = Steady()) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self._steady = steady
        device = next((parameter.device for parameter in parameters.values()), None)
        self._steps = torch.zeros((), device=device)  # Done, of all parameters alike; the kernel wants it as fp32.
        self._first = _zeros(parameters)  # Running means of the gradients, by parameter.
        self._second = _zeros(parameters)  # Running means of their squares.

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update."""
        groups = list(_groups(self._parameters, self._steady, learning_rate, self._weight_decay))
        if groups:
            self._steps += 1
        for group in groups:
            names = group.names
            # The fused kernel does in one pass what takes fifteen small operations for each tensor.
            torch._fused_adamw_(
                [self._parameters[name] for name in names],
                _gradients(self._parameters, names),
                [self._first[name] for name in names],
                [self._second[name] for name in names],
                [],
                [self._steps] * len(names),
                lr=group.learning_rate,
                beta1=self.BETAS[0],
                beta2=self.BETAS[1],
                weight_decay=group.weight_decay,
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
        self,
        parameters: Mapping[str, nn.Parameter],
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        steady: Steady = Steady(),
    ) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self._steady = steady
        self._momentum = momentum
        self._nesterov = nesterov and momentum > 0
        self._velocity = _zeros(parameters) if momentum else {}  # Decaying sums of the gradients, by parameter.

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update."""
        for group in _groups(self._parameters, self._steady, learning_rate, self._weight_decay):
            names = group.names
            torch._fused_sgd_(
                [self._parameters[name] for name in names],
                _gradients(self._parameters, names),
                [self._velocity[name] for name in names] if self._velocity else [],
                weight_decay=group.weight_decay,
                momentum=self._momentum,
                lr=group.learning_rate,
                dampening=0.0,
                nesterov=self._nesterov,
                maximize=False,
                is_first_step=False,
            )

    def state(self) -> dict[str, Tensor]:
        """The velocities; nothing without momentum."""
        return _prefixed("velocity", self._velocity)


def build_optimizer(
    section: OptimizerSection, parameters: Mapping[str, nn.Parameter], steady: Steady = Steady()
) -> Optimizer:
    """The optimizer that the run asks for, over parameters by name; some of them may be steady."""
    if section.name == "sgd":
        return MomentumSgd(parameters, section.weight_decay, section.momentum, section.nesterov, steady)
    return AdamW(parameters, section.weight_decay, steady)


def _zeros(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in parameters.items()}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _groups(
    parameters: Mapping[str, nn.Parameter], steady: Steady, learning_rate: float, weight_decay: float
) -> Iterator[_Group]:
    """None that is empty."""
    names = [name for name, parameter in parameters.items() if parameter.grad is not None]
    if usual := [name for name in names if name not in steady.names]:
        yield _Group(usual, learning_rate, weight_decay)
    if slow := [name for name in names if name in steady.names]:
        yield _Group(slow, learning_rate * steady.rate, 0.0)


def _gradients(parameters: Mapping[str, nn.Parameter], names: list[str]) -> list[Tensor]:
    gradients = (parameters[name].grad for name in names)
    return [gradient for gradient in gradients if gradient is not None]
