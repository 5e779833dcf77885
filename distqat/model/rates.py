"""The learning rate over the run: warm-up, then constant or a cosine. Pure.

The clock is the part of the run's sample budget that is behind, so pipelines of unequal speed are at the same rate when
they have seen the same share of the data together. Cosine: Loshchilov and Hutter, SGDR, 2017.
"""

from __future__ import annotations

import math

from distqat.sections import OptimizerSection


def warmup_fraction(section: OptimizerSection, batch: int, budget: int) -> float:
    """The part of a budget of so many samples that the warm-up takes; may be beyond 1."""
    return section.warmup_steps * batch / budget


def learning_rate(section: OptimizerSection, progress: float, warmup: float) -> float:
    """The rate of a batch before which `progress` of the budget lay; `warmup` as `warmup_fraction` gives it.

    Batch k of the warm-up, counted from 0, gets (k + 1) / `warmup_steps` of the learning rate, as if all had the same
    size.
    """
    if progress < warmup:
        return section.learning_rate * min(1.0, progress / warmup + 1 / section.warmup_steps)
    if section.schedule == "constant":
        return section.learning_rate
    # A run that is shorter than its warm-up ends there.
    done = min(1.0, (progress - warmup) / (1.0 - warmup)) if warmup < 1.0 else 0.0
    fall = 0.5 * (1.0 + math.cos(math.pi * done))
    return section.learning_rate * (section.final_fraction + (1.0 - section.final_fraction) * fall)
