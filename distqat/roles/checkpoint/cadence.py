"""Which states are checkpoints: all siblings and all stages say the same, without a word to each other. Pure.

What they share is the cut, the last step of each pipeline that is in a state, not the number of the round: a stage in
which a round has failed has committed fewer of them than the others, at the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from distqat.averaging.phases import phase
from distqat.ids import StepRef
from distqat.sections import SyncSection


def reach(sync: SyncSection, rounds: int, steps: int) -> int:
    """The least number of rounds that lies at most so many steps of the schedule before `rounds`."""
    while rounds > 0 and (steps := steps - phase(rounds - 1, sync).steps) >= 0:
        rounds -= 1
    return rounds


def is_due(before: Sequence[StepRef], after: Sequence[StepRef], every: int) -> bool:
    """Whether the state with the cut `after`, which follows that with `before`, goes into a checkpoint; 0: none does.

    It is one if the first by name of the pipelines that have gone on has come to a further multiple of `every` steps.
    So one pipeline counts for all, whichever others there are, and if it is gone another does.
    """
    known = {last.pipeline: last.step for last in before}
    gone_on = [last for last in after if last.step > known.get(last.pipeline, 0)]
    if not every or not gone_on:
        return False
    first = min(gone_on)
    return first.step // every > known.get(first.pipeline, 0) // every
