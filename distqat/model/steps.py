"""Which step a stage is at: what has begun, what is pending, what is committed. Pure.

All microbatches of a step are computed with the numbers of the same version, each counts once, and a step is committed
once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from distqat.errors import StaleError
from distqat.ids import MicrobatchId


@dataclass
class PendingStep:
    """Gradients that are accumulated and not committed."""

    step: int
    microbatches: set[int] = field(default_factory=set)
    """Indices of the microbatches whose gradients are in."""


class Steps:
    """Counts from 1. A step is begun by its first microbatch in training and ends committed or dropped."""

    def __init__(self, stage: str) -> None:
        self.version = 0  # Steps that are committed.
        self.begun: int | None = None  # The step that has begun; None between steps.
        self.pending: PendingStep | None = None  # None before the first gradients of a step.
        self._stage = stage  # For messages.

    def __repr__(self) -> str:
        text = f"version {self.version}"
        if self.pending is not None:
            text += f", pending step {self.pending.step} ({len(self.pending.microbatches)} microbatches)"
        return text

    def admit(self, microbatch: MicrobatchId) -> None:
        """Raises StaleError unless the microbatch may be computed now."""
        step, index = microbatch.step, microbatch.index
        if step <= self.version:
            raise StaleError(f"stage {self._stage} has committed step {self.version}; step {step} is over")
        if self.begun is not None and step != self.begun:
            raise StaleError(
                f"stage {self._stage} is at step {self.begun}, which is neither committed nor dropped; "
                f"microbatch {index} of step {step} has to wait"
            )
        if self.pending is not None and index in self.pending.microbatches:
            raise StaleError(f"stage {self._stage} has counted microbatch {index} of step {step} already")

    def count(self, microbatch: MicrobatchId) -> None:
        """The gradients of a microbatch are in."""
        if self.pending is None:
            self.pending = PendingStep(microbatch.step)
        self.pending.microbatches.add(microbatch.index)

    def expect_complete(self, step: int, waiting: int, fault: str) -> None:
        """Raises StaleError unless gradients of exactly that step are pending, and no microbatch waits for its own."""
        refused = f"stage {self._stage} at version {self.version} {fault} step {step}"
        if self.pending is None:
            raise StaleError(f"{refused}: nothing is pending")
        if self.pending.step != step:
            raise StaleError(f"{refused}: step {self.pending.step} is pending")
        if waiting:
            raise StaleError(f"{refused}: {waiting} microbatches have no gradient yet")

    def end(self) -> None:
        """What has begun is committed or dropped."""
        self.begun, self.pending = None, None
