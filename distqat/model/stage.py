"""One stage: forward, loss in the last stage, backward, and the commit of a step.

Everything here runs on the device's thread. Tensors enter and leave on the CPU. Knows nothing of peers: who sent a
microbatch and where its output goes is the business of `pipeline`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from distqat.config import OptimizerSection
from distqat.errors import ModelError, StaleError, TensorError
from distqat.ids import MicrobatchId, StageIndex
from distqat.model import boundary, checks, rng
from distqat.model.layout import layout_of, named
from distqat.model.optimizer import build_optimizer
from distqat.model.zoo import blocks as zoo_blocks
from distqat.model.zoo.blocks import StagePlan

CPU = torch.device("cpu")


class Task(Protocol):
    """What the model is to learn; implemented in `data`."""

    @property
    def name(self) -> str:
        """Its name, such as "cv"."""
        ...

    def loss(self, output: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The sum over samples of each sample's mean loss (a scalar with a graph), and sums of metrics."""
        ...


@dataclass(frozen=True)
class LossResult:
    """What the last stage says of a microbatch."""

    sums: dict[str, float]
    """Sums over the microbatch's samples, such as "loss", "correct", "samples"."""
    gradient: Tensor | None
    """By the stage's input; None when the stage is also the first, or when it does not train."""


@dataclass
class PendingStep:
    """Gradients that are accumulated and not committed."""

    step: int
    microbatches: set[int] = field(default_factory=set)
    """Indices of the microbatches whose gradients are in."""


@dataclass(frozen=True)
class StageStatistics:
    """What a stage holds at one moment."""

    version: int
    stashed_microbatches: int
    stashed_bytes: int
    pending_microbatches: int


class Stage:
    """A slice of a model that trains. Not thread-safe: one device thread owns it.

    Steps count from 1. A step is begun by its first microbatch in training and ends with `commit` or `drop_pending`.
    Microbatches of another step are refused in between: the commit changes the numbers that they must be computed with.
    """

    def __init__(
        self, plan: StagePlan, seed: int, optimizer: OptimizerSection, task: Task | None, device: torch.device = CPU
    ) -> None:
        if task is None and plan.index == plan.num_stages - 1:
            raise ModelError(f"stage {plan.name} is the last one and needs a task")
        self.plan = plan
        self.index = StageIndex(plan.index)
        self.num_stages = plan.num_stages
        self.name = plan.name
        self.seed = seed
        self.task = task
        self.device = device
        self.version = 0  # Steps that are committed.
        self.pending: PendingStep | None = None  # None before the first backward of a step.
        self.blocks = nn.ModuleList(
            zoo_blocks.build(spec, seed, plan.model, plan.first_block + number).to(device)
            for number, spec in enumerate(plan.blocks)
        )
        self.layout = layout_of(plan.first_block, self.blocks)
        self.num_elements = sum(slot.size for slot in self.layout)
        self.num_parameters = sum(slot.size for slot in self.layout if slot.is_parameter)
        self._dropouts = [rng.dropouts(block) for block in self.blocks]
        self._parameters = list(self.blocks.parameters())
        self._buffers = list(self.blocks.buffers())
        self._optimizer = build_optimizer(optimizer, self._parameters)
        self._stash: dict[MicrobatchId, tuple[Tensor, Tensor]] = {}  # Input and output that wait for a gradient.
        self._step: int | None = None  # The step that has begun; None between steps.
        self._buffers_at_commit: list[Tensor] = []  # Running statistics when that step began.

    def __repr__(self) -> str:
        text = f"<Stage {self.name} of {self.num_stages}, version {self.version}"
        if self.pending is not None:
            text += f", pending step {self.pending.step} ({len(self.pending.microbatches)} microbatches)"
        return text + ">"

    @property
    def is_first(self) -> bool:
        """Whether it takes the samples themselves."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether it computes the loss."""
        return self.index == self.num_stages - 1

    def forward(self, microbatch: MicrobatchId, hidden: Tensor, train: bool = True) -> Tensor:
        """The stage's output for a microbatch; in training its graph is kept until `backward`.

        A microbatch that is still stashed is replaced (running statistics then count it twice, so whoever replays a
        step begins with `drop_pending`). The last stage gives its plain output, for evaluation only.
        Raises TensorError for an input of another shape or type or with NaN, StaleError for a step that is over, or
        for another than the one that has begun; nothing is changed then.
        """
        checks.expect(f"input of stage {self.name}", hidden, self.plan.inputs)
        if not train:
            with torch.no_grad():
                return self._apply(self._entered(hidden), None).to(CPU)
        if self.is_last:
            raise ModelError(f"stage {self.name} is the last one; in training it takes `loss`")
        with self._attempt(microbatch):
            entered = self._entered(hidden)
            output = self._apply(entered, microbatch)
        self._stash[microbatch] = (entered, output)
        return output.detach().to(CPU)

    def loss(
        self,
        microbatch: MicrobatchId,
        hidden: Tensor,
        targets: dict[str, Tensor],
        batch_samples: int,
        train: bool = True,
    ) -> LossResult:
        """Forward, loss and backward of a microbatch at once, in the last stage.

        The gradient is that of the sum of the samples' losses divided by `batch_samples`, so that the microbatches of a
        batch together give the gradient of the batch. Raises as `forward`, and TensorError when the targets do not fit
        or the loss is NaN or infinite; parameters, gradients and running statistics are untouched then.
        """
        if self.task is None or not self.is_last:
            raise ModelError(f"stage {self.name} is not the last one; it takes `forward`")
        checks.expect(f"input of stage {self.name}", hidden, self.plan.inputs)
        checks.expect_targets(targets, hidden.shape[0])
        if batch_samples < hidden.shape[0]:
            raise TensorError(f"a microbatch of {hidden.shape[0]} samples in a batch of {batch_samples}")
        if not train:
            with torch.no_grad():
                output = self._apply(self._entered(hidden), None)
                return LossResult(self._score(self.task, output, targets)[1], None)
        with self._attempt(microbatch):
            entered = self._entered(hidden)
            total, sums = self._score(self.task, self._apply(entered, microbatch), targets)
        torch.autograd.backward(total / batch_samples)
        self._add_pending(microbatch)
        return LossResult(sums, None if entered.grad is None else entered.grad.to(CPU))

    def backward(self, microbatch: MicrobatchId, gradient: Tensor) -> Tensor | None:
        """Accumulate the gradients of a microbatch; returns the gradient by the stage's input (None in stage 0).

        Raises StaleError for a microbatch that has no forward here, TensorError for a gradient that does not fit the
        output; the microbatch can still be given its gradient then.
        """
        stashed = self._stash.get(microbatch)
        if stashed is None:
            raise StaleError(
                f"stage {self.name} has no forward of microbatch {microbatch.index} of step {microbatch.step}"
            )
        entered, output = stashed
        checks.expect_like(f"gradient for stage {self.name}", gradient, output)
        del self._stash[microbatch]
        torch.autograd.backward(output, boundary.canonical(gradient.to(self.device)))
        self._add_pending(microbatch)
        return None if entered.grad is None else entered.grad.to(CPU)

    def commit(self, step: int) -> bool:
        """Apply the pending gradients of exactly that step; it becomes the stage's version.

        Returns False, and does nothing, when that step is committed already. Raises StaleError when another step or
        none is pending, or when a microbatch of the step still waits for its gradient.
        """
        if step == self.version:
            return False
        refused = f"stage {self.name} at version {self.version} cannot commit step {step}"
        if self.pending is None:
            raise StaleError(f"{refused}: nothing is pending")
        if self.pending.step != step:
            raise StaleError(f"{refused}: step {self.pending.step} is pending")
        if self._stash:
            raise StaleError(f"{refused}: {len(self._stash)} microbatches have no gradient yet")
        self._optimizer.step()
        self.version = step
        self._end()
        return True

    def drop_pending(self) -> None:
        """Forget the step that has begun: its gradients, its stash, and what it did to running statistics."""
        if self._step is not None:
            self._put_buffers(self._buffers_at_commit)
        self._end()

    def adopt_version(self, step: int) -> None:
        """The parameters that were loaded are those after this step; drops what is pending."""
        self.drop_pending()
        self.version = step

    def flatten(self) -> Tensor:
        """A new fp32 vector on the CPU of `num_elements`: parameters in the model's order, then running statistics."""
        parts = [tensor.detach().reshape(-1).to(CPU, torch.float32) for tensor in (*self._parameters, *self._buffers)]
        return torch.cat(parts)

    def named_tensors(self) -> dict[str, Tensor]:
        """What `flatten` gives, as tensors by their names in the uncut model, such as `blocks.3.attention.weight`."""
        return named(self.layout, self.flatten())

    def load_flat(self, vector: Tensor) -> None:
        """Take over what `flatten` gave, here or elsewhere. Raises TensorError; nothing is changed then."""
        checks.expect_vector(f"state of stage {self.name}", vector, self.num_elements)
        with torch.no_grad():
            for tensor, slot in zip((*self._parameters, *self._buffers), self.layout, strict=True):
                tensor.copy_(vector[slot.offset : slot.offset + slot.size].view(slot.shape))
        if self._step is not None:
            self._buffers_at_commit = self._copy_buffers()

    def statistics(self) -> StageStatistics:
        """A frozen look at what is held."""
        held = sum(tensor.nbytes for pair in self._stash.values() for tensor in pair)
        pending = len(self.pending.microbatches) if self.pending else 0
        return StageStatistics(self.version, len(self._stash), held, pending)

    def _check_step(self, microbatch: MicrobatchId) -> None:
        """A step's microbatches are all computed with the numbers of the same version, each once."""
        if microbatch.step <= self.version:
            raise StaleError(f"stage {self.name} has committed step {self.version}; step {microbatch.step} is over")
        if self._step is not None and microbatch.step != self._step:
            raise StaleError(
                f"stage {self.name} is at step {self._step}, which is neither committed nor dropped; "
                f"microbatch {microbatch.index} of step {microbatch.step} has to wait"
            )
        if self.pending is not None and microbatch.index in self.pending.microbatches:
            raise StaleError(
                f"stage {self.name} has counted microbatch {microbatch.index} of step {microbatch.step} already"
            )

    @contextmanager
    def _attempt(self, microbatch: MicrobatchId) -> Iterator[None]:
        """A forward in training: it begins its step when it succeeds, and leaves no trace when it fails."""
        self._check_step(microbatch)
        before = self._copy_buffers()
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                self._put_buffers(before)
        if self._step is None:
            self._step, self._buffers_at_commit = microbatch.step, before

    def _end(self) -> None:
        self._step, self._buffers_at_commit, self.pending = None, [], None
        self._stash.clear()
        self._optimizer.zero_grad(set_to_none=True)

    def _add_pending(self, microbatch: MicrobatchId) -> None:
        if self.pending is None:
            self.pending = PendingStep(microbatch.step)
        self.pending.microbatches.add(microbatch.index)

    def _entered(self, hidden: Tensor) -> Tensor:
        """The input as a leaf of the stage's own graph."""
        return boundary.canonical(hidden.detach().to(self.device)).requires_grad_(not self.is_first)

    def _apply(self, hidden: Tensor, microbatch: MicrobatchId | None) -> Tensor:
        """Through the blocks; a microbatch means training, None evaluation."""
        self._set_training(microbatch is not None)
        for number, block in enumerate(self.blocks):
            if microbatch is not None and self._dropouts[number]:
                path = ("dropout", microbatch.step, microbatch.index, self.plan.first_block + number)
                rng.seed_dropouts(self._dropouts[number], self.seed, *path)
            try:
                hidden = boundary.cross(block(hidden))
            except ValueError as error:
                raise TensorError(f"stage {self.name} cannot compute this microbatch: {error}") from None
        return hidden

    def _set_training(self, train: bool) -> None:
        if self.blocks.training != train:
            self.blocks.train(train)

    def _score(self, task: Task, output: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        placed = {name: target.to(self.device) for name, target in targets.items()}
        try:
            total, sums = task.loss(output, placed)
        except (KeyError, IndexError, ValueError) as error:
            raise TensorError(f"the targets do not fit task {task.name}: {error}") from None
        if not bool(torch.isfinite(total)):
            raise TensorError(f"the loss in stage {self.name} is {float(total.detach())}; the microbatch is refused")
        return total, sums

    def _copy_buffers(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._buffers]

    def _put_buffers(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)
