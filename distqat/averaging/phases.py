"""How each round of a stage is taken: plainly or by DiLoCo, which fragments, after how many steps. Pure.

    rounds     0 .. warmup_steps - 1      then P x ramp_rounds                       then
    average    plain, of all fragments    DiLoCo, one fragment after the other       DiLoCo, one after the other
    steps      1                          growing from 1 to inner_steps / P          inner_steps / P
    momentum   0                          growing from 0 to outer_momentum           outer_momentum

The ramp is for short runs: momentum that a few rounds of fast progress have built up overshoots for many rounds after,
and long runs do not notice it.
"""

from __future__ import annotations

from dataclasses import dataclass

from distqat.sections import SyncSection


@dataclass(frozen=True)
class Phase:
    """How a round is taken."""

    is_plain: bool
    """Local values are averaged (warm-up), not pseudo-gradients."""
    steps: int
    """Steps of a pipeline from the round before to this one."""
    learning_rate: float
    momentum: float
    fragments: tuple[int, ...] = (0,)
    """Those that synchronise, in growing order."""
    overlap: int = 0
    """Steps that go on while the round runs; 0: training waits for it."""


def phase(number: int, sync: SyncSection) -> Phase:
    """How round `number` is taken."""
    if number < sync.warmup_steps:
        return Phase(True, 1, 1.0, 0.0, tuple(range(sync.fragments)))
    cycle, fragment = divmod(number - sync.warmup_steps, sync.fragments)
    if cycle >= sync.ramp_rounds:
        share, steps = 1.0, sync.round_steps
    else:
        share = cycle / sync.ramp_rounds
        steps = max(1, round((1 + (sync.inner_steps - 1) * share) / sync.fragments))
    momentum = sync.outer_momentum * share
    return Phase(False, steps, sync.outer_learning_rate, momentum, (fragment,), _overlap(sync, steps))


def _overlap(sync: SyncSection, steps: int) -> int:
    """Of a round so many steps after the one before: it ends before the next begins.

    An eager one may end where the next begins, since nothing that was learned meanwhile is dropped.
    """
    return min(sync.overlap, steps if sync.eager else steps - 1)
