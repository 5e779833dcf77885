"""What a stage's own code raises on its device, as errors that peers understand; and what is freed then.

A model is code that others wrote, on a device that may run out of memory: neither may take an expert down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from distqat.errors import ComputeError, MemoryShortError, TornError
from distqat.model.stage import Stage

log = logging.getLogger(__name__)

T = TypeVar("T")

RAISED = (
    RuntimeError,
    MemoryError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
    OSError,
)
"""What code of a model, or torch on its behalf, raises. Errors of distqat are none of these."""

COMMIT = "commit"
"""The kind of work that changes the stage's numbers."""

MAX_REASON = 300
"""Characters of a message that are told; those of torch may fill pages."""


def contained(kind: str, stage: Stage, work: Callable[[], T]) -> Callable[[], T]:
    """The same work, on the device's thread, which raises ComputeError or MemoryShortError for what is raised in it.

    What the stage held of the step is dropped then, and memory that is cached for later given back. Of a commit it is
    TornError, and nothing is dropped: what is left of the stage is of no use.
    """

    def contained_work() -> T:
        try:
            return work()
        except RAISED as error:
            log.warning("%s of %s failed on %s", kind, stage.name, stage.device, exc_info=error)
            told = told_as(kind, stage, error)
        if kind == COMMIT:
            raise TornError(told.reason)
        # Only here: the error held what was under way by its traceback.
        free(stage)
        raise told

    return contained_work


def told_as(kind: str, stage: Stage, error: Exception) -> ComputeError:
    """What is told of it. The same for the same cause: without the numbers of a moment, by which two would differ."""
    if is_out_of_memory(error):
        return MemoryShortError(
            f"not enough memory on {stage.device} for the {kind} of {stage.name}; smaller microbatches need less"
        )
    line = next(iter(str(error).strip().splitlines()), "")[:MAX_REASON]
    return ComputeError(f"the {kind} of {stage.name} failed: {type(error).__name__}: {line}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had too little memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free(stage: Stage) -> None:
    """Drop what the stage holds of a step that is not committed, and the memory that its device keeps for later."""
    stage.drop_pending()
    if stage.device.type == "cuda":
        torch.cuda.empty_cache()
