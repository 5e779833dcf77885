"""How a step is applied; the same in every stage of a pipeline. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """What a commit says besides which step."""

    progress: float = 0.0
    """Part of the run's sample budget that lay before the batch, 0 to 1: the clock of the schedule."""
    factor: float = 1.0
    """Gradients are multiplied by it, for clipping and to take the loss scale back. With 0 the step is skipped:
    nothing is applied, and the version moves all the same."""

    warmup: float = 0.0
    """Part of the run's budget that warms the learning rate up; may be beyond 1."""

    @property
    def is_skipped(self) -> bool:
        """Whether the step's gradients are thrown away."""
        return self.factor == 0.0


PLAIN = Terms()
"""Begun at the start of the run, gradients as they are."""
