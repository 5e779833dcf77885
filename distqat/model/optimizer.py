"""The inner optimizer of a stage."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from distqat.config import OptimizerSection


def build_optimizer(section: OptimizerSection, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the run asks for.

    The update of a parameter depends on that parameter alone, so a cut cannot matter.
    AdamW: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
    """
    own = list(parameters)
    if section.name == "sgd":
        return torch.optim.SGD(
            own, section.learning_rate, momentum=section.momentum, weight_decay=section.weight_decay, foreach=False
        )
    # The fused kernel does in one pass what takes fifteen small operations for each tensor.
    return torch.optim.AdamW(own, section.learning_rate, weight_decay=section.weight_decay, fused=True)
