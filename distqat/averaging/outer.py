"""The outer step: local values to what a sibling contributes, an average to the next anchor.

A stage is cut into **fragments** that synchronise in turn. The vector of a fragment is flat fp32 on the CPU: its
parameters first, then its float buffers (running statistics). The vector of several fragments is theirs, one behind the
other, and so is that of the whole stage here. Everything makes new tensors; nothing that was committed changes.

Two kinds of round. In the **warm-up** all fragments synchronise after every step and the average of the local values
is the new anchor. In **DiLoCo** (Douillard et al. 2023, arXiv:2311.08105; by fragments: Douillard et al. 2025,
arXiv:2501.18512) siblings contribute pseudo-gradients, and the outer optimizer is SGD with Nesterov momentum (Sutskever
et al. 2013). Buffers are averaged plainly in both.

Every multiplication and addition is an operation of its own and rounded by itself: no fused multiply-add, so that two
different CPUs agree to the bit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from distqat.averaging import loops
from distqat.averaging.phases import Phase
from distqat.averaging.spans import Shape, Span, cut, spans
from distqat.ids import PeerId, StepRef
from distqat.model import state
from distqat.wire.codecs.codec import Floats
from distqat.wire.codecs.memory import empty

MOST_PIPELINES = 256
"""Pipelines of which a state says how many of their steps are in it; those that contributed last."""

EXACT = "none"
"""The codec with which an average travels bit for bit."""

MARGIN = 1 << 10
"""Elements: a codec decodes whole blocks of its own, so that it may need so many more at both ends of ours together."""

PARAMETERS, STATISTICS, MOMENTUM = range(3)
"""Vectors of a fragment, as its digest has them."""


@dataclass(frozen=True, eq=False)
class Part:
    """What is committed of one fragment: `anchor` [num_elements], `momentum` [num_parameters]."""

    anchor: Tensor
    momentum: Tensor
    digest: str
    """Of parameters, running statistics and momentum, bit for bit."""

    @classmethod
    def of(cls, anchor: Tensor, momentum: Tensor) -> Part:
        """The part of these numbers, with its digest worked out. Keeps the tensors."""
        parameters, statistics = anchor[: len(momentum)], anchor[len(momentum) :]
        return cls(anchor, momentum, state.digest(parameters, statistics, momentum))

    @property
    def shape(self) -> Shape:
        """How long its vectors are."""
        return Shape(self.momentum.numel(), self.anchor.numel())


@dataclass(frozen=True, eq=False)
class OuterState:
    """What a sibling has committed, by fragments; parts that a round does not touch are shared by the states."""

    parts: tuple[Part, ...]
    round: int
    """Rounds so far."""
    digest: str
    """Of round, members, cut, anchors and momenta; equal digests mean equal bits."""
    members: tuple[PeerId, ...] = ()
    """Of the group that committed it, in order; empty before the first round. They decide together what comes next."""
    cut: tuple[StepRef, ...] = ()
    """The last step of each pipeline that is in it, in the order of their last contributions."""

    def __repr__(self) -> str:
        return f"<OuterState round {self.round} {self.digest[:8]}>"

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the fragments."""
        return tuple(part.shape for part in self.parts)

    @property
    def num_parameters(self) -> int:
        """Of all fragments."""
        return sum(part.momentum.numel() for part in self.parts)

    @property
    def num_elements(self) -> int:
        """Of all fragments."""
        return sum(part.anchor.numel() for part in self.parts)

    @property
    def anchor(self) -> Tensor:
        """Of all fragments [num_elements]; a view if there is one fragment, else a copy."""
        return self.gather(range(len(self.parts)))

    @property
    def momentum(self) -> Tensor:
        """Of all fragments [num_parameters]; a view if there is one fragment, else a copy."""
        return _join([part.momentum for part in self.parts])

    def gather(self, fragments: Sequence[int]) -> Tensor:
        """The anchor of these fragments, one behind the other; a view if there is one fragment, else a copy."""
        return _join([self.parts[index].anchor for index in fragments])

    @classmethod
    def of(
        cls, parts: Sequence[Part], number: int, members: Sequence[PeerId] = (), cut: Sequence[StepRef] = ()
    ) -> OuterState:
        """The state of these parts after `number` rounds, of which these members committed the last."""
        steps = (f"step {last}" for last in cut)
        text = "\n".join((f"round {number}", *members, *steps, *(part.digest for part in parts)))
        return cls(tuple(parts), number, xxhash.xxh3_128_hexdigest(text.encode()), tuple(members), tuple(cut))

    @classmethod
    def founding(cls, local: Tensor, shapes: Sequence[Shape]) -> OuterState:
        """Fresh numbers of all fragments before the first round: no momentum yet. Copies them."""
        parts = [Part.of(own.clone(), torch.zeros(shape.num_parameters)) for own, shape in split(local, shapes)]
        return cls.of(parts, 0)


def split(vector: Tensor, shapes: Sequence[Shape]) -> Iterator[tuple[Tensor, Shape]]:
    """The vectors of fragments that lie one behind the other, as views."""
    begin = 0
    for shape in shapes:
        yield vector[begin : begin + shape.num_elements], shape
        begin += shape.num_elements


class Source(Protocol):
    """An average that is read block by block; `contribution.Average` is one."""

    @property
    def codec(self) -> str:
        """In which it travelled."""
        ...

    def read(self, begin: int, end: int, scratch: Floats) -> Floats:
        """Elements `begin` to `end`: in `scratch`, which has room for MARGIN more, or where they are already."""
        ...


@dataclass(frozen=True)
class Whole:
    """An average that is there as a vector [num_elements]."""

    vector: Tensor
    codec: str = EXACT

    def read(self, begin: int, end: int, scratch: Floats) -> Floats:
        """See Source."""
        there: Floats = self.vector.numpy()[begin:end]
        return there


def advanced(cut: Sequence[StepRef], origins: Sequence[StepRef]) -> tuple[StepRef, ...]:
    """The cut after a round whose contributions stand for these steps; each pipeline's last step only grows."""
    last = {known.pipeline: known.step for known in cut}
    for origin in origins:
        # Put behind the others: who contributed longest ago is forgotten first.
        last[origin.pipeline] = max(last.pop(origin.pipeline, 0), origin.step)
    return tuple(StepRef(pipeline, step) for pipeline, step in list(last.items())[-MOST_PIPELINES:])


def apply(
    outer: OuterState,
    average: Tensor | Source,
    how: Phase,
    members: Sequence[PeerId] = (),
    codec: str = EXACT,
    origins: Sequence[StepRef] = (),
) -> OuterState:
    """The state after a round of these members with this average, as long as the round's fragments are.

    m <- mu m + d;  theta <- theta - eta (d + mu m). In the warm-up theta <- d, and momentum stays as it is. Of an
    average that travelled with a lossy codec all is differences: in the warm-up and for buffers theta <- theta - d.
    `codec` is that of a vector; a source knows its own.
    """
    source = Whole(average, codec) if isinstance(average, Tensor) else average
    return Step(outer, how, source.codec).result(source, members, origins)


class Step:
    """The outer step of a round, taken block by block in any order, so that it goes on while the average still comes.

    The state before stays as it is. A block is what the digest takes as one: it is read, worked out and hashed while it
    is in the caches.
    """

    def __init__(self, outer: OuterState, how: Phase, codec: str) -> None:
        """`codec` is that of the average."""
        most = state.BLOCK_BYTES // torch.float32.itemsize
        whole = spans(outer.shapes, how)
        self._outer = outer
        self._blocks = list(cut(whole, 0, whole[-1].end if whole else 0, most))  # In their order.
        self._begins = [block.begin for block in self._blocks]
        self._missing = [block.end - block.begin for block in self._blocks]  # Elements of each that have not come yet.
        self._mean: Floats = np.empty(max(self._missing, default=0) + MARGIN, np.float32)
        self._parts = {index: _NextPart(outer.parts[index], how, codec != EXACT, most) for index in how.fragments}

    def take(self, source: Source, begin: int, end: int) -> None:
        """Work out the blocks that are complete now that elements `begin` to `end` have come, each of them once."""
        for number in range(max(0, bisect_right(self._begins, begin) - 1), bisect_left(self._begins, end)):
            block = self._blocks[number]
            self._missing[number] -= min(end, block.end) - max(begin, block.begin)
            if not self._missing[number]:
                self._work_out(source, block)

    def result(self, source: Source, members: Sequence[PeerId], origins: Sequence[StepRef]) -> OuterState:
        """The state after the round of these members. All of the average is there; what was not taken is taken now."""
        for number, block in enumerate(self._blocks):
            if self._missing[number]:
                self._work_out(source, block)
        parts = list(self._outer.parts)
        for index, part in self._parts.items():
            parts[index] = part.result()
        return OuterState.of(parts, self._outer.round + 1, members, advanced(self._outer.cut, origins))

    def _work_out(self, source: Source, block: Span) -> None:
        mean = source.read(block.begin, block.end, self._mean)
        self._parts[block.fragment].take(block, mean)


class _NextPart:
    """What a fragment becomes."""

    def __init__(self, part: Part, how: Phase, is_difference: bool, block: int) -> None:
        self.how = how
        self.is_difference = is_difference
        self._block = block  # Elements that are hashed together.
        self._before: tuple[Floats, Floats] = (part.anchor.numpy(), part.momentum.numpy())
        self._anchor = empty((part.shape.num_elements,), torch.float32)
        self._momentum = part.momentum if how.is_plain else empty((part.shape.num_parameters,), torch.float32)
        self._after: tuple[Floats, Floats] = (self._anchor.numpy(), self._momentum.numpy())
        self._rate, self._mu = how.learning_rate, how.momentum
        momentum = self._after[1]
        self._digest = state.Digest(momentum.nbytes, self._after[0].nbytes - momentum.nbytes, momentum.nbytes)

    def take(self, span: Span, mean: Floats) -> None:
        """One block of parameters or running statistics, and what the average has for it."""
        theta, after = self._before[0][span.within], self._after[0][span.within]
        number = (span.offset if span.is_parameter else span.offset - len(self._after[1])) // self._block
        if span.is_parameter and not self.how.is_plain:
            momentum = self._after[1][span.within]
            loops.nesterov(theta, self._before[1][span.within], mean, self._mu, self._rate, after, momentum)
            self._digest.put(MOMENTUM, number, momentum.view(np.uint8).data)
        elif self.is_difference:
            np.subtract(theta, mean, out=after)
        else:
            np.copyto(after, mean)
        self._digest.put(PARAMETERS if span.is_parameter else STATISTICS, number, after.view(np.uint8).data)

    def result(self) -> Part:
        """The fragment after the round."""
        if self.how.is_plain:
            self._digest.put_whole(MOMENTUM, self._after[1].view(np.uint8).data)
        return Part(self._anchor, self._momentum, self._digest.hex())


def _join(vectors: Sequence[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.cat(list(vectors))
