"""What people see of a pipeline: how far it is, its loss and speed, and the numbers of each step."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field

from distqat.model.agreement import Verdict
from distqat.pipeline.tally import StepResult
from distqat.sections import Precision
from distqat.telemetry import Rate

log = logging.getLogger(__name__)

SHOWN_LOSSES = 32


@dataclass
class Shown:
    """As its trainer knows it."""

    step: int = 0
    verdict: Verdict | None = None  # On that step, as all stages know it; None before the first route.
    loss: float = math.nan
    evaluation: float = math.nan
    replayed: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN_LOSSES))
    rate: Rate = field(default_factory=Rate)

    def committed(self, result: StepResult, samples: int, now: float) -> dict[str, float]:
        """A step of so many samples is; the values of its metric line that follow from it."""
        self.step = result.step
        self.loss = result.sums["loss"] / samples
        self.losses.append(self.loss)
        self.rate.add(samples, now)
        return {
            "step": result.step,
            "loss": self.loss,
            "seconds": result.seconds,
            "samples": samples,
            "samples_per_second": self.rate.value(now),
            "factor": result.verdict.factor,
            "loss_scale": result.verdict.scale.value,
        }


def tell_if_skipped(pipeline: str, result: StepResult, precision: Precision) -> None:
    """A step that the verdict skips is told of, since its samples count and nothing is learned from them."""
    if result.verdict.factor == 0.0:
        # While the scale of fp16 is looked for that is as it should be.
        level = logging.INFO if precision == "fp16" else logging.WARNING
        text = "pipeline %s: step %d is skipped, its gradients are not finite; the loss scale is now %g"
        log.log(level, text, pipeline, result.step, result.verdict.scale.value)
