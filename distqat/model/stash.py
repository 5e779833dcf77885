"""What a stage keeps of its forwards until the gradients come, and how many bytes that is.

Autograd keeps much more than inputs and outputs. What it keeps is measured at the first microbatch of each shape, every
block of memory once and without the parameters, and counted so for all further ones of that shape. A stage that is to
compute its forwards again keeps inputs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from distqat.ids import MicrobatchId

MAX_SHAPES = 64
"""Shapes of microbatches of which is remembered what they take."""

Forward = Callable[[Tensor], Tensor]
"""From an input to an output with its graph, the same whenever it is called."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A microbatch that waits for its gradient."""

    entered: Tensor
    """The input, a leaf."""
    output: Tensor | None
    """With its graph; None if the forward is to be computed again."""
    model: Tensor
    """Shape and element type of the output, without memory."""
    nbytes: int


class Stash:
    """The microbatches of the step under way that wait for their gradients."""

    def __init__(self, recompute: bool, held: Callable[[], Iterable[Tensor]]) -> None:
        """`held` gives the tensors that are there anyway, such as parameters."""
        self.recompute = recompute
        self.nbytes = 0  # Of all that is kept now.
        self.most_nbytes = 0  # That were ever kept at once.
        self._held = held
        self._kept: dict[MicrobatchId, Kept] = {}
        self._measured: dict[torch.Size, int] = {}  # Bytes of one microbatch, by the shape of its input.

    def __repr__(self) -> str:
        return f"<Stash of {len(self)} microbatches, {self.nbytes} bytes, {self.most_nbytes} at most>"

    def __len__(self) -> int:
        return len(self._kept)

    def compute(self, microbatch: MicrobatchId, entered: Tensor, forward: Forward) -> Tensor:
        """The output of a forward, detached. What its backward needs is kept, in place of what that microbatch had."""
        if self.recompute:
            output, nbytes = self._forgetful(entered, forward), entered.nbytes
        else:
            output, nbytes = self._measured_once(entered, forward)
        self.drop(microbatch)
        self._kept[microbatch] = Kept(entered, None if self.recompute else output, output.detach().to("meta"), nbytes)
        self.nbytes += nbytes
        self.most_nbytes = max(self.most_nbytes, self.nbytes)
        return output.detach()

    def find(self, microbatch: MicrobatchId) -> Kept | None:
        """What is kept of a microbatch."""
        return self._kept.get(microbatch)

    def drop(self, microbatch: MicrobatchId) -> None:
        """Nobody waits for its gradient any more."""
        kept = self._kept.pop(microbatch, None)
        if kept is not None:
            self.nbytes -= kept.nbytes

    def clear(self) -> None:
        """Nobody waits any more."""
        self._kept.clear()
        self.nbytes = 0

    def _forgetful(self, entered: Tensor, forward: Forward) -> Tensor:
        # Not `no_grad`, for which some kernels are others: autograd goes along, but what it wants to keep is let go.
        with saved_tensors_hooks(_let_go, _same):
            return forward(entered).detach()

    def _measured_once(self, entered: Tensor, forward: Forward) -> tuple[Tensor, int]:
        known = self._measured.get(entered.shape)
        if known is not None:
            return forward(entered), known
        saved: list[Tensor] = []
        with saved_tensors_hooks(partial(_listed, saved), _same):
            output = forward(entered)
        nbytes = _measure(entered, (*saved, output), self._held())
        if len(self._measured) >= MAX_SHAPES:
            self._measured.clear()
        self._measured[entered.shape] = nbytes
        return output, nbytes


def _measure(entered: Tensor, saved: Iterable[Tensor], held: Iterable[Tensor]) -> int:
    """The bytes of the input and of what was saved, each block of memory once, without what is held anyway."""
    # The input may be a small part of a large message of which others have parts too.
    seen = {_place(entered), *map(_place, held)}
    nbytes = entered.nbytes
    for tensor in saved:
        if _place(tensor) not in seen:
            seen.add(_place(tensor))
            nbytes += tensor.untyped_storage().nbytes()
    return nbytes


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _listed(saved: list[Tensor], tensor: Tensor) -> Tensor:
    saved.append(tensor)
    return tensor


def _same(packed: Any) -> Any:
    return packed


def _let_go(tensor: Tensor) -> None:
    return None
