"""The arithmetic of a round as plainly as it can be: whole vectors, one torch operation after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from distqat.averaging.outer import OuterState, Part, split
from distqat.averaging.phases import Phase
from distqat.wire import codecs


def delta(state: OuterState, local: Tensor, how: Phase, is_exact: bool = True) -> Tensor:
    """What a sibling contributes: with `none`, or (all differences) with a lossy codec."""
    pieces = []
    for part, own in _parts(state, local, how):
        end = part.shape.num_parameters
        moved = part.anchor - own
        values = own if how.is_plain else torch.cat((moved[:end], own[end:]))
        pieces.append(values if is_exact else moved)
    return torch.cat(pieces)


def apply(state: OuterState, average: Tensor, how: Phase, is_exact: bool = True) -> OuterState:
    """The outer step with this average."""
    parts = list(state.parts)
    for index, (part, mean) in zip(how.fragments, _parts(state, average, how), strict=True):
        end = part.shape.num_parameters
        values = mean if is_exact else part.anchor - mean
        if how.is_plain:
            parts[index] = Part.of(values, part.momentum)
            continue
        momentum = part.momentum * how.momentum + mean[:end]
        step = (mean[:end] + momentum * how.momentum) * how.learning_rate
        parts[index] = Part.of(torch.cat((part.anchor[:end] - step, values[end:])), momentum)
    return OuterState.of(parts, state.round + 1)


def weights(samples: Sequence[int]) -> list[Tensor]:
    """The fp32 weight [] of every contributor, divided in fp64 and rounded once."""
    return [torch.tensor(count / sum(samples), dtype=torch.float32) for count in samples]


def weighted_mean(parts: Sequence[Tensor], samples: Sequence[int]) -> Tensor:
    """In fp32, in this order."""
    by = weights(samples)
    mean = parts[0] * by[0]
    for part, weight in zip(parts[1:], by[1:], strict=True):
        mean = mean + part * weight
    return mean


def through(codec: str, vector: Tensor) -> Tensor:
    """Encoded and decoded."""
    coder = codecs.find(codec)
    return coder.decode(coder.encode(vector), torch.float32, tuple(vector.shape))


def average(codec: str, contributions: Sequence[Tensor], samples: Sequence[int], bounds: Sequence[int]) -> Tensor:
    """What members end with whose slices lie between these bounds, all and without samples too.

    What travels to an owner is encoded, what it brings itself is not; the mean is, by slices.
    """
    sent = [through(codec, vector) for vector in contributions]
    slices = []
    for owner, (begin, end) in enumerate(pairwise(bounds)):
        there = [*sent[:owner], contributions[owner], *sent[owner + 1 :]]
        taken = [(vector[begin:end], count) for vector, count in zip(there, samples, strict=True) if count]
        mean = weighted_mean([vector for vector, _ in taken], [count for _, count in taken])
        slices.append(through(codec, mean))
    return torch.cat(slices)


def _parts(state: OuterState, vector: Tensor, how: Phase) -> list[tuple[Part, Tensor]]:
    parts = [state.parts[index] for index in how.fragments]
    return [(part, own) for part, (own, _) in zip(parts, split(vector, [part.shape for part in parts]), strict=True)]
