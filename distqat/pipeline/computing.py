"""What a stage computes for its route, on the device's thread; measured, and with the norms that a verdict needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from distqat.ids import MicrobatchId
from distqat.model.agreement import Verdict, decide
from distqat.model.device import Priority
from distqat.model.faults import contained
from distqat.pipeline.hop_codecs import TIED
from distqat.pipeline.host import Post
from distqat.pipeline.words import Gradient, Microbatch
from distqat.wire.tensors import Sent

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What goes up for a microbatch."""

    gradient: torch.Tensor | None
    """By the stage's input; None in stage 0, and in an evaluation."""
    sums: Mapping[str, float]
    """What the last stage says of it: "loss" and others."""
    square_norms: tuple[float, ...] = ()
    """Of the whole step, by block from here to the end of the model: with its last microbatch, if they are needed."""
    tied: torch.Tensor | None = None
    """The last stage's gradient of the tensor that it borrows: with the step's last microbatch."""


class Computing:
    """The work of one stage on one route; one job at a time."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._stage = post.stage
        self._lent = -1  # The edition of the tied tensor that went down on this route last; -1: none.

    async def lend(self) -> dict[str, torch.Tensor]:
        """In stage 0, before a forward: the tied tensor by its name, if the last stage does not have it as it is."""
        tie = self._stage.tie
        if not tie.travels or self._stage.index or tie.edition == self._lent:
            return {}
        self._lent = tie.edition
        return {TIED: await self._post.host.device.run(tie.lend, Priority.FORWARD)}

    async def forward(self, message: Microbatch, hidden: torch.Tensor) -> Sent:
        """The stage's output, as it travels. Raises TensorError, StaleError, as everything here does."""
        work = partial(self._stage.send, message.id, hidden, message.train)
        return await self._run("forward", message.id, work, Priority.FORWARD, message.train)

    async def loss(self, message: Microbatch, hidden: torch.Tensor, targets: dict[str, torch.Tensor]) -> Answer:
        """In the last stage: forward, loss and backward, with the tied tensor if that came along."""
        borrowed = targets.pop(TIED, None) if self._stage.tie.travels else None

        def work() -> Answer:
            if borrowed is not None:
                self._stage.tie.borrow(borrowed)
            result = self._stage.loss(message.id, hidden, targets, message.batch_samples, message.train)
            if not message.train:
                return Answer(None, result.sums)
            is_due = self._stage.tie.travels and self._post.standing.is_last(message.id)
            tied = self._stage.tie.give_back() if is_due else None
            return Answer(result.gradient, result.sums, self._square_norms(message.id, ()), tied)

        return await self._run("loss", message.id, work, Priority.BACKWARD, message.train)

    async def backward(self, message: Gradient, gradient: torch.Tensor, tied: torch.Tensor | None) -> Answer:
        """From the answer of the stage below, the one for the stage above."""
        stage = self._stage

        def work() -> Answer:
            if tied is not None and stage.index == 0:
                # First: when the last microbatch is counted, the step is complete.
                stage.tie.take_back(tied, stage.training.precision == "fp16")
            entered = stage.backward(message.id, gradient)
            return Answer(entered, message.sums, self._square_norms(message.id, message.square_norms), tied)

        return await self._run("backward", message.id, work, Priority.BACKWARD)

    async def conclude(self, step: int, square_norms: tuple[float, ...]) -> Verdict:
        """In stage 0: decide how the step is applied everywhere, and apply it here."""
        limits, standing = self._post.limits, self._post.standing
        verdict = Verdict(1.0, standing.verdict.scale)
        if limits.needs_norms:
            verdict = decide(square_norms, limits.optimizer, limits.precision, verdict.scale)
        await self.apply(step, verdict)
        return verdict

    async def apply(self, step: int, verdict: Verdict) -> None:
        """Apply the step's gradients as was decided."""
        work = partial(self._post.standing.apply, self._stage, step, verdict)
        await self._run("commit", MicrobatchId(step, 0), work, Priority.OTHER)

    async def _run(
        self, kind: str, id: MicrobatchId, work: Callable[[], T], priority: Priority, train: bool = True
    ) -> T:
        loop, device = asyncio.get_running_loop(), self._post.host.device
        began = loop.time()
        with self._post.timeline.span(kind, id.step if train else 0, id.index) as span:
            # To its end within the containment: a kernel of CUDA fails when it is waited for.
            whole = contained(kind, self._stage, device.to_end(work))
            result = await device.run(span.around(whole), priority)
        if train and kind != "commit":
            self._post.pace.worked(kind, loop.time() - began)
        return result

    # On the device's thread.

    def _square_norms(self, id: MicrobatchId, below: tuple[float, ...]) -> tuple[float, ...]:
        if not self._post.limits.needs_norms or not self._post.standing.is_last(id):
            return ()
        return (*self._stage.square_norms(id.step), *below)
