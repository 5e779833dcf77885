"""How what others have committed meets the local values: of a round that steps go on beside, or that was missed. Pure.

All vectors are flat fp32 and of the same fragments, one behind the other: in each parameters first, then running
statistics.

**Merging** (Streaming DiLoCo, arXiv:2501.18512): steps go on from the local values; in the end these are mixed with
what was committed. What was learned beside the round is dropped but for the share that is kept.

**Eager** (arXiv:2502.12996): steps go on from where the outer optimizer would be if of this round only the own part
were known: own contributions are fresh, those of others one round old. The paper keeps an outer optimizer in each
replica and feeds it d_avg(t-H) + w_i (d_i(t) - d_i(t-H)). The outer step is linear, so that replica stands at

    theta_i(t) = theta(t-H) - eta (w_i d_i(t) + mu m_i(t)),        m_i(t) = mu m_i(t-H) + w_i d_i(t)

where theta(t-H) is what all have committed, d_i are its own pseudo-gradients and w_i is its share of the samples: one
outer step from the committed anchor with a momentum of own contributions only. So nothing but m_i has to be kept, and
what is committed stays the same on all siblings. Once the round is committed, the local values move to where it led.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distqat.averaging import outer
from distqat.averaging.outer import OuterState
from distqat.averaging.phases import Phase
from distqat.averaging.spans import Shape


def merged(local: Tensor, committed: Tensor, keep: float) -> Tensor:
    """keep * local + (1 - keep) * committed, where keep is the paper's alpha; with 0 what was committed, itself."""
    return committed if keep == 0.0 else local * keep + committed * (1.0 - keep)


def moved(
    local: Tensor, begun: Tensor, target: Tensor, shapes: Sequence[Shape], with_statistics: bool = True
) -> Tensor:
    """Local values that began at `begun`, as if they had begun at `target`: local + (target - begun).

    What was learned since is kept as it is. Running statistics become those of the target, since shifted ones might be
    negative, or stay.
    """
    pieces: list[Tensor] = []
    triples = zip(outer.split(local, shapes), outer.split(begun, shapes), outer.split(target, shapes), strict=True)
    for (own, shape), (old, _), (new, _) in triples:
        end = shape.num_parameters
        pieces += [own[:end] + (new[:end] - old[:end]), (new if with_statistics else own)[end:]]
    return torch.cat(pieces)


def carry(local: Tensor, before: OuterState, after: OuterState, fragments: Sequence[int]) -> Tensor:
    """Local values of these fragments that began at the anchor of `before`, as if they had begun at that of `after`.

    So the progress since is neither lost nor counted twice. A fragment that has not changed keeps its statistics too.
    """
    pieces: list[Tensor] = []
    shapes = [before.parts[index].shape for index in fragments]
    for index, (own, shape) in zip(fragments, outer.split(local, shapes), strict=True):
        old, new = before.parts[index], after.parts[index]
        pieces.append(own if old.digest == new.digest else moved(own, old.anchor, new.anchor, [shape]))
    return torch.cat(pieces)


@dataclass(frozen=True, eq=False)
class Ahead:
    """Where eager steps begin, and the momentum of own contributions if the round is committed."""

    begun: Tensor
    momenta: dict[int, Tensor]
    """By fragment [its num_parameters]."""


def ahead(state: OuterState, local: Tensor, how: Phase, share: float, momenta: dict[int, Tensor]) -> Ahead:
    """One outer step with own contributions only, which are `share` of the group's; running statistics stay local.

    `momenta` are those of the rounds before; a fragment that is not in it has none yet.
    """
    shapes = [state.parts[index].shape for index in how.fragments]
    pieces: list[Tensor] = []
    after: dict[int, Tensor] = {}
    for index, (own, shape) in zip(how.fragments, outer.split(local, shapes), strict=True):
        end, anchor = shape.num_parameters, state.parts[index].anchor
        part = (anchor[:end] - own[:end]) * share
        momentum = momenta[index] * how.momentum + part if index in momenta else part
        step = (part + momentum * how.momentum) * how.learning_rate
        pieces += [anchor[:end] - step, own[end:]]
        after[index] = momentum
    return Ahead(torch.cat(pieces), after)
