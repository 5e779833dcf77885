"""One stage: forward, loss in the last stage, backward, and the commit of a step.

Everything here runs on the device's thread. Tensors may come on the CPU or on the stage's device; what leaves stays on
the stage's device, detached. Knows nothing of peers: who sent a microbatch and where its output goes is the business of
`pipeline`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from distqat.errors import ModelError, StaleError, TensorError
from distqat.ids import MicrobatchId, StageIndex
from distqat.model import agreement, boundary, checks, gradients, local, vectors
from distqat.model.fragments import deal
from distqat.model.local import LocalState
from distqat.model.optimizer import Steady, build_optimizer
from distqat.model.rates import learning_rate
from distqat.model.slice import Slice
from distqat.model.stash import Stash
from distqat.model.steps import PendingStep, Steps
from distqat.model.task import LossResult, Task, score
from distqat.model.terms import PLAIN, Terms
from distqat.model.zoo.blocks import StagePlan
from distqat.sections import OptimizerSection, Precision
from distqat.wire.tensors import Sent

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """How a stage trains; the same in all stages but for `recompute`."""

    seed: int
    optimizer: OptimizerSection
    precision: Precision = "fp32"
    recompute: bool = False
    """Whether a microbatch that waits for its gradient keeps its input only, and computes its forward again then."""
    fragments: int = 1
    """Parts of the stage that siblings synchronise in turn."""
    step_rate: float = 1.0
    """Of the learning rate, for the step sizes of quantizers, which do not decay."""


@dataclass(frozen=True)
class StageStatistics:
    """What a stage holds at one moment."""

    version: int
    stashed_microbatches: int
    stashed_bytes: int
    """Inputs, outputs and what autograd keeps between them; see `model.stash`."""
    most_stashed_bytes: int
    """Ever."""
    pending_microbatches: int


class Stage:
    """A slice of a model that trains. Not thread-safe: one device thread owns it.

    Steps count from 1. A step is begun by its first microbatch in training and ends with `commit` or `drop_pending`.
    Microbatches of another step are refused in between: the commit changes the numbers that they must be computed with.
    """

    def __init__(self, plan: StagePlan, training: Training, task: Task | None, device: torch.device = CPU) -> None:
        if task is None and plan.index == plan.num_stages - 1:
            raise ModelError(f"stage {plan.name} is the last one and needs a task")
        self.plan = plan
        self.index = StageIndex(plan.index)
        self.num_stages = plan.num_stages
        self.name = plan.name
        self.training = training
        self.task = task
        self.device = device
        # What the last stage multiplies the loss of a step by.
        self.loss_scale = agreement.first_scale(training.precision).value
        self._slice = Slice(plan, training.seed, training.precision, device)
        self.blocks = self._slice.blocks
        self.layout = self._slice.layout
        self.tie = self._slice.tie
        self.num_elements = sum(slot.size for slot in self.layout)
        self.num_parameters = sum(slot.size for slot in self.layout if slot.is_parameter)
        self.fragments = deal(self.layout, training.fragments, plan.name)
        names = [slot.name for slot in self.layout if slot.is_parameter]
        named = dict(zip(names, self._slice.parameters, strict=True))
        learned_steps = {id(step) for step in self._slice.learned()}
        steady = Steady(frozenset(name for name in names if id(named[name]) in learned_steps), training.step_rate)
        self.optimizer = build_optimizer(training.optimizer, named, steady)
        self._stash = Stash(training.recompute, self._slice.held)
        self._steps = Steps(plan.name)
        self._buffers_at_commit: list[Tensor] = []  # Running statistics when the step began; empty between steps.

    def __repr__(self) -> str:
        return f"<Stage {self.name} of {self.num_stages}, {self._steps}>"

    @property
    def version(self) -> int:
        """Steps that are committed."""
        return self._steps.version

    @property
    def pending(self) -> PendingStep | None:
        """Whose gradients are accumulated; None before the first backward of a step."""
        return self._steps.pending

    @property
    def is_last(self) -> bool:
        """Whether it computes the loss."""
        return self.index == self.num_stages - 1

    def forward(self, microbatch: MicrobatchId, hidden: Tensor, train: bool = True) -> Tensor:
        """The stage's output for a microbatch, in the type of `plan.outputs`; in training it waits for `backward` then.

        A microbatch that is still stashed is replaced (running statistics then count it twice, so whoever replays a
        step begins with `drop_pending`). The last stage gives its plain output, for evaluation only.
        Raises TensorError for an input of another shape or type or with NaN, StaleError for a step that is over, or
        for another than the one that has begun; nothing is changed then.
        """
        checks.expect(f"input of stage {self.name}", hidden, self.plan.inputs)
        if not train:
            self.tie.expect_lent()
            return self._evaluate(hidden)
        if self.is_last:
            raise ModelError(f"stage {self.name} is the last one; in training it takes `loss`")
        with self._attempt(microbatch):
            entered = self._slice.enter(hidden)
            return self._stash.compute(microbatch, entered, partial(self._slice.run, microbatch=microbatch))

    def send(self, microbatch: MicrobatchId, hidden: Tensor, train: bool = True) -> Sent:
        """As `forward`, in the form in which it travels: as codes, where the stage has learned how to round it."""
        output = self.forward(microbatch, hidden, train)
        codes = self._slice.take_codes()
        return output if codes is None else codes

    def loss(
        self,
        microbatch: MicrobatchId,
        hidden: Tensor,
        targets: dict[str, Tensor],
        batch_samples: int,
        train: bool = True,
    ) -> LossResult:
        """Forward, loss and backward of a microbatch at once, in the last stage. The loss is computed in fp32.

        The gradient is that of the sum of the samples' losses divided by `batch_samples` and multiplied by
        `loss_scale`, so that the microbatches of a batch together give the gradient of the batch. Raises as `forward`,
        and TensorError when the targets do not fit or the loss is NaN or infinite; parameters, gradients and running
        statistics are untouched then.
        """
        if self.task is None or not self.is_last:
            raise ModelError(f"stage {self.name} is not the last one; it takes `forward`")
        checks.expect(f"input of stage {self.name}", hidden, self.plan.inputs)
        checks.expect_targets(targets, hidden.shape[0])
        self.tie.expect_lent()
        if batch_samples < hidden.shape[0]:
            raise TensorError(f"a microbatch of {hidden.shape[0]} samples in a batch of {batch_samples}")
        if not train:
            with torch.no_grad():
                return LossResult(score(self.task, self.name, self._evaluate(hidden), targets)[1], None)
        with self._attempt(microbatch):
            entered = self._slice.enter(hidden)
            total, sums = score(self.task, self.name, self._slice.run(entered, microbatch), targets)
        torch.autograd.backward(total / batch_samples * self.loss_scale)
        self._steps.count(microbatch)
        return LossResult(sums, entered.grad)

    def backward(self, microbatch: MicrobatchId, gradient: Tensor) -> Tensor | None:
        """Accumulate the gradients of a microbatch; returns the gradient by the stage's input (None in stage 0).

        Raises StaleError for a microbatch that has no forward here, TensorError for a gradient that does not fit the
        output; the microbatch can still be given its gradient then. In fp16 NaN and infinity fit: they skip the step.
        """
        kept = self._stash.find(microbatch)
        if kept is None:
            raise StaleError(
                f"stage {self.name} has no forward of microbatch {microbatch.index} of step {microbatch.step}"
            )
        may_overflow = self._slice.overflow is not None
        checks.expect_like(f"gradient for stage {self.name}", gradient, kept.model, may_overflow)
        self._stash.drop(microbatch)
        gradient = boundary.canonical(gradient.to(self.device))
        if kept.output is not None:
            torch.autograd.backward(kept.output, gradient)
        else:
            self._slice.run_again(kept.entered, microbatch, gradient)
        self._steps.count(microbatch)
        return kept.entered.grad

    def square_norms(self, step: int) -> tuple[float, ...]:
        """Squared norms of the gradients of that step, an fp64 for each block of the stage; infinite after an overflow.

        They are still multiplied by the loss scale. Raises StaleError unless all gradients of the step are in.
        """
        self._steps.expect_complete(step, len(self._stash), "has no norms of")
        self.tie.unite()
        return gradients.square_norms(list(self.blocks), self._slice.overflowed())

    def commit(self, step: int, terms: Terms = PLAIN) -> bool:
        """Apply the pending gradients of exactly that step, on these terms; it becomes the stage's version.

        A step that the terms skip leaves parameters and optimizer alone. Running statistics keep what its forwards did,
        as they do in one process, unless they are not finite any more. Returns False, and does nothing, when that step
        is committed already. Raises StaleError when another step or none is pending, or when a microbatch of the step
        still waits for its gradient.
        """
        if step == self.version:
            return False
        self._steps.expect_complete(step, len(self._stash), "cannot commit")
        if terms.is_skipped:
            self._slice.mend_buffers(self._buffers_at_commit)
        else:
            self.tie.unite()
            gradients.multiply(self._slice.parameters, terms.factor)
            self.tie.touch(self._slice.parameters)
            self.optimizer.step(learning_rate(self.training.optimizer, terms.progress, terms.warmup))
        self._steps.version = step
        self._end()
        return True

    def drop_pending(self) -> None:
        """Forget the step that has begun: its gradients, its stash, and what it did to running statistics."""
        if self._steps.begun is not None:
            self._slice.put_buffers(self._buffers_at_commit)
        self._end()

    def adopt_version(self, step: int) -> None:
        """The parameters that were loaded are those after this step; drops what is pending."""
        self.drop_pending()
        self._steps.version = step

    def flatten(self) -> Tensor:
        """A new fp32 vector on the CPU of `num_elements`: parameters in the model's order, then running statistics."""
        return vectors.read(self._tensors)

    def gather(self, fragments: Sequence[int]) -> Tensor:
        """A new fp32 vector on the CPU: those fragments' one behind the other, in each parameters come first.

        All fragments together hold the elements of `flatten`, in its order only if there is one.
        """
        return vectors.read([self._tensors[place] for place in self._places(fragments)])

    def scatter(self, fragments: Sequence[int], vector: Tensor) -> None:
        """Take over what `gather` gave, here or elsewhere. Raises TensorError; nothing is changed then.

        What is pending of a step stays. If it is dropped, the running statistics are those that were put here.
        """
        places = self._places(fragments)
        expected = sum(self.layout[place].size for place in places)
        checks.expect_vector(f"state of stage {self.name}", vector, expected)
        tensors, first_buffer = self._tensors, len(self._slice.parameters)
        written = [tensors[place] for place in places]
        self.tie.touch(written)
        vectors.write(written, vector)
        self._slice.forget_casts({self.layout[place].block - self.plan.first_block for place in places})
        if self._steps.begun is not None:
            for place in places:
                if place >= first_buffer:
                    self._buffers_at_commit[place - first_buffer] = tensors[place].clone()

    def local_state(self) -> LocalState:
        """A copy of all that the next step follows from, as it was after the last commit, whatever is pending."""
        return local.copy_of(self.version, self._held())

    def restore(self, state: LocalState) -> None:
        """Go on where the state was taken, here or elsewhere; what is pending is dropped.

        Raises StateError when the state is of another stage or optimizer; nothing is changed then.
        """
        local.check(self.name, state, self._held())
        self.adopt_version(state.version)
        self.tie.touch(self._slice.parameters)
        with torch.no_grad():
            for name, tensor in self._held().items():
                tensor.copy_(state.tensors[name])

    def statistics(self) -> StageStatistics:
        """A frozen look at what is held."""
        stash, pending = self._stash, len(self.pending.microbatches) if self.pending else 0
        return StageStatistics(self.version, len(stash), stash.nbytes, stash.most_nbytes, pending)

    def _held(self) -> dict[str, Tensor]:
        """By the names of a `LocalState`. Running statistics are those of the last commit, not of a step under way."""
        buffers = self._buffers_at_commit if self._steps.begun is not None else self._slice.buffers
        values = dict(zip((slot.name for slot in self.layout), [*self._slice.parameters, *buffers], strict=True))
        return {
            **{local.VALUES + name: tensor for name, tensor in values.items()},
            **{local.OPTIMIZER + name: tensor for name, tensor in self.optimizer.state().items()},
        }

    @property
    def _tensors(self) -> list[Tensor]:
        return [*self._slice.parameters, *self._slice.buffers]

    def _places(self, fragments: Sequence[int]) -> list[int]:
        return [place for index in fragments for place in self.fragments[index].slots]

    @contextmanager
    def _attempt(self, microbatch: MicrobatchId) -> Iterator[None]:
        """A forward in training: it begins its step when it succeeds, and leaves no trace when it fails."""
        self._steps.admit(microbatch)
        before = self._slice.copy_buffers()
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                self._slice.put_buffers(before)
        if self._steps.begun is None:
            self._steps.begun, self._buffers_at_commit = microbatch.step, before

    def _end(self) -> None:
        self._steps.end()
        self._buffers_at_commit = []
        self._stash.clear()
        self._slice.end_step()
        gradients.clear(self._slice.parameters)

    def _evaluate(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            return self._slice.run(self._slice.enter(hidden), None)
