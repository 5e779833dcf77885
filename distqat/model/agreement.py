"""What the norms of all stages' gradients mean for a step: clipped, skipped, and how the next loss is scaled. Pure.

Where the last backward of a step ends (stage 0 of a pipeline, or the one process of a baseline) `decide` is asked once,
and its verdict goes to every stage. The sum over the blocks is exact, so neither the cut nor the order can change it.

Dynamic loss scaling: Micikevicius et al., Mixed Precision Training, 2018.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from distqat.sections import OptimizerSection, Precision

FIRST_SCALE = 2.0**16
SMALLEST_SCALE = 1.0
LARGEST_SCALE = 2.0**24
"""Powers of two, so that scaling rounds nothing."""

GROWTH_STEPS = 200
"""Steps without an overflow after which the scale is doubled."""

EPSILON = 1e-6
"""Added to the norm, as `torch.nn.utils.clip_grad_norm_` does."""


@dataclass(frozen=True)
class LossScale:
    """What the loss of a step is multiplied by, so that small gradients are not lost in fp16; 1 in other precisions."""

    value: float = 1.0
    streak: int = 0
    """Steps without an overflow since the scale last changed."""


@dataclass(frozen=True)
class Verdict:
    """How a step is applied everywhere."""

    factor: float
    """As in `Terms`."""
    scale: LossScale
    """Of the next step."""


def first_scale(precision: Precision) -> LossScale:
    """The scale that a run begins with."""
    return LossScale(FIRST_SCALE) if precision == "fp16" else LossScale()


def needs_norms(section: OptimizerSection, precision: Precision) -> bool:
    """Whether a step can only be decided with the norms of all stages."""
    return section.clip_norm > 0 or precision == "fp16"


def decide(square_norms: Iterable[float], section: OptimizerSection, precision: Precision, scale: LossScale) -> Verdict:
    """The verdict on a step whose loss had this scale, from the squared norms of its gradients, one for each block.

    A norm that is NaN or infinite skips the step, in fp16 with half the scale for the next.
    """
    norm = _norm(square_norms) / scale.value
    if not math.isfinite(norm):
        return Verdict(0.0, _after_overflow(scale) if precision == "fp16" else scale)
    factor = min(1.0, section.clip_norm / (norm + EPSILON)) if section.clip_norm > 0 else 1.0
    return Verdict(factor / scale.value, _after_success(scale) if precision == "fp16" else scale)


def _norm(squares: Iterable[float]) -> float:
    try:
        return math.sqrt(math.fsum(squares))
    except (OverflowError, ValueError):
        # Beyond fp64, or a square below zero: numbers that no gradient has.
        return math.inf


def _after_overflow(scale: LossScale) -> LossScale:
    return LossScale(max(scale.value / 2, SMALLEST_SCALE))


def _after_success(scale: LossScale) -> LossScale:
    if scale.streak + 1 < GROWTH_STEPS:
        return LossScale(scale.value, scale.streak + 1)
    return LossScale(min(scale.value * 2, LARGEST_SCALE))
