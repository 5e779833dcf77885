"""A batch as the trainer sees it: cut into microbatches, and added up again from their outcomes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from distqat.errors import DataError, MessageError
from distqat.model.agreement import Verdict
from distqat.pipeline.hop_codecs import INPUTS
from distqat.pipeline.split import split
from distqat.pipeline.words import AS_IT_IS, Committed, Gradient, Microbatch, Outcome

MAX_RESULTS = 16
"""Results that are kept for someone to ask; older ones are forgotten."""

Piece = tuple[Microbatch, dict[str, torch.Tensor]]
"""A microbatch and its part of the batch's tensors."""


@dataclass(frozen=True)
class StepResult:
    """A committed step: sums over its samples ("loss", ...), and seconds since its first microbatch was sent.

    `worked` are the seconds that stage 0 took for it (`Committed.seconds`): no round and no step before is in them.
    """

    step: int
    sums: Mapping[str, float]
    seconds: float
    worked: float = 0.0
    verdict: Verdict = AS_IT_IS


@dataclass
class Tally:
    """Sums so far of a step or an evaluation."""

    count: int
    began: float = 0.0
    """When its first microbatch was sent."""
    sums: dict[str, float] = field(default_factory=dict)
    outcomes: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all outcomes are in."""
        return self.outcomes == self.count

    def add(self, answer: Outcome | Gradient) -> None:
        """Add one more. Raises MessageError when all are in, and for one that does not tell the loss."""
        if self.is_complete:
            raise MessageError(f"an answer to {answer.id}, which does not wait for one")
        if "loss" not in answer.sums:
            raise MessageError(f"an answer to {answer.id} that does not tell the loss")
        self.outcomes += 1
        for name, value in answer.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class Results:
    """The steps of a route: under way, and committed until somebody asks."""

    def __init__(self) -> None:
        self.under_way: dict[int, Tally] = {}
        self._done: dict[int, StepResult] = {}  # Oldest first.

    def begin(self, step: int, count: int) -> None:
        """A step of so many microbatches is submitted."""
        self.under_way[step] = Tally(count)

    def commit(self, committed: Committed, now: float) -> None:
        """The step is over. Raises MessageError when it is not complete."""
        step = committed.step
        tally = self.under_way[step]
        if not tally.is_complete:
            raise MessageError(f"step {step} is committed after {tally.outcomes} of {tally.count} outcomes")
        del self.under_way[step]
        self._done[step] = StepResult(step, tally.sums, now - tally.began, committed.seconds, committed.verdict)
        if len(self._done) > MAX_RESULTS:
            del self._done[next(iter(self._done))]

    def take(self, step: int) -> StepResult | None:
        """The result of a committed step, once; None when it is not known or forgotten."""
        return self._done.pop(step, None)


def pieces_of(
    step: int,
    tensors: Mapping[str, torch.Tensor],
    microbatches: int,
    train: bool,
    progress: float = 0.0,
    claim: int = 0,
    warmup: float = 0.0,
) -> list[Piece]:
    """The microbatches of a batch. Raises DataError when it has no inputs, or not as many targets."""
    sizes = {len(tensor) for tensor in tensors.values()}
    if len(sizes) != 1 or INPUTS not in tensors:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise DataError(f"a batch needs 'inputs' and targets of as many samples, got {shapes}")
    samples = sizes.pop()
    ranges = split(samples, microbatches)
    return [
        (
            Microbatch(
                step, index, len(ranges), samples, train, len(part), progress=progress, claim=claim, warmup=warmup
            ),
            {name: tensor[part.start : part.stop] for name, tensor in tensors.items()},
        )
        for index, part in enumerate(ranges)
    ]
