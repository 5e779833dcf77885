"""What an expert remembers from route to route, so that every step is applied exactly once. Pure.

A route may break between the moment at which stage 0 commits a step and the one at which the last stage hears of it.
So the message that opens the next route carries a step down to the last stage and back up, and each stage moves to it:

- down: the trainer's last committed step; a stage that has committed one more (the news was lost) passes that on;
- up: the step that the stages below have settled on. A stage that holds all gradients of exactly that step applies
  them now, any other gradients are dropped, and a newcomer, which has no steps of its own, takes the number as it is.

With the step travels the verdict on it (by how much gradients were cut, and the next loss scale), so that whoever
applies a step late applies what all others did, and a newcomer scales its losses as the one before it would have.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distqat.errors import FencedError, MessageError, StaleError
from distqat.ids import MicrobatchId, PipelineId, StepRef
from distqat.model.agreement import Verdict
from distqat.model.terms import Terms
from distqat.pipeline.words import AS_IT_IS

if TYPE_CHECKING:
    from distqat.model.stage import Stage

MAX_PIPELINES = 1024
"""Pipelines whose last epoch and step are remembered; more than one expert ever serves."""

FENCED = 1 << 63
"""An epoch that none of a route reaches: the pipeline is over."""


@dataclass(frozen=True)
class Held:
    """What a stage holds of a pipeline: steps committed (None: newcomer), and the step whose gradients are complete."""

    version: int | None
    complete: int | None = None

    def is_new_to(self, step: int) -> bool:
        """Whether it takes that step as it is. No step is committed without all stages of its route, so who lacks two
        has been away, and another has applied them in its place."""
        return self.version is None or self.version <= step - 2


@dataclass(frozen=True)
class StepSize:
    """What all microbatches of one training step say of it."""

    count: int
    samples: int
    progress: float = 0.0
    """Part of the run's budget that lay before it, 0 to 1."""
    claim: int = 0
    """On the samples that it is of; 0: none."""
    warmup: float = 0.0
    """Part of the run's budget that warms the learning rate up."""


@dataclass(frozen=True)
class LastStep:
    """The last step of a pipeline that was applied here: its number, the claim that it was of, and its verdict."""

    step: int = 0
    claim: int = 0
    verdict: Verdict = AS_IT_IS


def step_to_pass_on(step: int, held: Held) -> int:
    """The step for the stages below, when the ones above speak of `step`. Raises StaleError."""
    if held.is_new_to(step) or held.version == step or _can_apply(step, held):
        return step
    if held.version == step + 1:
        return step + 1
    raise StaleError(_apart(step, held))


def has_to_apply(step: int, held: Held) -> bool:
    """Whether the held gradients are those of `step`, which is committed. Raises StaleError when it is out of reach."""
    if held.is_new_to(step) or held.version == step:
        return False
    if _can_apply(step, held):
        return True
    raise StaleError(_apart(step, held))


def _can_apply(step: int, held: Held) -> bool:
    return held.version == step - 1 and held.complete == step


def _apart(step: int, held: Held) -> str:
    return (
        f"the route is at step {step}, the stage has committed step {held.version} of this pipeline; "
        "give the seat to a stage without steps of its own, or drive a new pipeline"
    )


class Standing:
    """An expert's memory of the pipelines that it serves; outlives the routes. One for each PipelineService."""

    def __init__(self) -> None:
        self.owed: deque[tuple[StepRef, int]] = deque()  # Steps applied, and samples: the host has yet to hear of them.
        self.verdict = AS_IT_IS  # On the last committed step; its loss scale is that of the present one.
        self._stage: Stage | None = None  # The stage that the rest speaks of; None before the first route.
        self._pipeline: PipelineId | None = None  # The pipeline whose steps the stage counts; None: a newcomer to any.
        self._sizes: dict[int, StepSize] = {}  # Of the steps that have begun and are not committed.
        self._epochs: dict[PipelineId, int] = {}  # The newest epoch seen of each pipeline, last seen last.
        self._last: dict[PipelineId, LastStep] = {}  # What was applied last of each, last applied last.

    def note_epoch(self, pipeline: PipelineId, epoch: int) -> None:
        """A route of that epoch wants to open. Raises StaleError when a newer one has been seen."""
        newest = self._epochs.pop(pipeline, 0)
        self._epochs[pipeline] = max(newest, epoch)
        if len(self._epochs) > MAX_PIPELINES:
            del self._epochs[next(iter(self._epochs))]
        if newest == FENCED:
            raise FencedError(f"pipeline {pipeline} was ended while its trainer was away; its samples are with others")
        if epoch < newest:
            raise StaleError(f"route epoch {epoch} of pipeline {pipeline} is older than epoch {newest}, which was here")

    def fence(self, pipeline: PipelineId) -> None:
        """No route of this pipeline opens any more, whatever its epoch."""
        self._epochs.pop(pipeline, None)
        self._epochs[pipeline] = FENCED

    def note_size(self, step: int, size: StepSize) -> None:
        """A training microbatch speaks of its step's size. Raises MessageError when it was another before."""
        known = self._sizes.setdefault(step, size)
        if known != size:
            raise MessageError(f"step {step} of {size} after {known}")

    def size(self, step: int) -> StepSize | None:
        """Of a step that has begun; None when nothing of it was here."""
        return self._sizes.get(step)

    def is_last(self, id: MicrobatchId) -> bool:
        """Whether it is the last microbatch of its step; they are answered in the order of their indices."""
        size = self.size(id.step)
        return size is not None and id.index == size.count - 1

    # What follows touches the stage, so it runs on the device's thread.

    def held(self, stage: Stage, pipeline: PipelineId) -> Held:
        """What the stage holds for a route of this pipeline."""
        if stage is not self._stage:
            self.owed.clear()
            return Held(None)
        if pipeline != self._pipeline:
            return Held(None)
        pending = stage.pending
        size = self._sizes.get(pending.step) if pending is not None else None
        if pending is None or size is None or len(pending.microbatches) != size.count:
            return Held(stage.version)
        return Held(stage.version, pending.step)

    def reach(self, stage: Stage, pipeline: PipelineId, step: int, verdict: Verdict = AS_IT_IS) -> None:
        """Bring the stage to `step`, which is committed with that verdict. Raises StaleError."""
        held = self.held(stage, pipeline)
        if has_to_apply(step, held):
            self.apply(stage, step, verdict)
        else:
            stage.drop_pending()
            if held.is_new_to(step):
                stage.adopt_version(step)
            self._decided(stage, verdict)
        self._stage, self._pipeline = stage, pipeline
        self._sizes.clear()

    def close(self, stage: Stage, pipeline: PipelineId, step: int, verdict: Verdict) -> LastStep:
        """What is applied of a pipeline that has been fenced. If it ends at `step` and the gradients of exactly that
        one are here, they are applied first: another stage has heard of the commit with that verdict, this one not."""
        if step and _can_apply(step, self.held(stage, pipeline)):
            self.apply(stage, step, verdict)
        return self._last.get(pipeline, LastStep())

    def apply(self, stage: Stage, step: int, verdict: Verdict = AS_IT_IS) -> None:
        """Apply the step's gradients as was decided, and remember that the host has to hear of it."""
        pipeline, size = self._pipeline, self._sizes[step]
        assert pipeline is not None
        stage.commit(step, Terms(size.progress, verdict.factor, size.warmup))
        # In the same breath: whoever waits for this may be cancelled, and the samples must still be counted once.
        self.owed.append((StepRef(pipeline, step), size.samples))
        self._remember(pipeline, LastStep(step, size.claim, verdict))
        self._decided(stage, verdict)
        del self._sizes[step]

    def _remember(self, pipeline: PipelineId, last: LastStep) -> None:
        self._last.pop(pipeline, None)
        self._last[pipeline] = last
        if len(self._last) > MAX_PIPELINES:
            del self._last[next(iter(self._last))]

    def _decided(self, stage: Stage, verdict: Verdict) -> None:
        self.verdict = verdict
        stage.loss_scale = verdict.scale.value
