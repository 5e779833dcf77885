"""Which rounds are checkpoints: all siblings and all stages say the same, without a word to each other. Pure."""

from __future__ import annotations

from distqat.averaging.phases import phase
from distqat.sections import SyncSection


def reach(sync: SyncSection, rounds: int, steps: int) -> int:
    """The least number of rounds that lies at most so many steps of the schedule before `rounds`."""
    while rounds > 0 and (steps := steps - phase(rounds - 1, sync).steps) >= 0:
        rounds -= 1
    return rounds


class Cadence:
    """Counts the steps that the schedule has between rounds, from the first round on."""

    def __init__(self, sync: SyncSection, every: int) -> None:
        """A checkpoint after each `every` steps of the schedule, at the next round; 0: none."""
        self._sync = sync
        self._every = every
        self._round = 0  # Rounds counted so far.
        self._steps = 0  # Of the schedule, up to there.

    def __repr__(self) -> str:
        return f"<Cadence every {self._every} steps, {self._steps} in {self._round} rounds>"

    def is_due(self, rounds: int) -> bool:
        """Whether the state after so many rounds goes into a checkpoint. Asked with growing numbers."""
        if not self._every or rounds < 1:
            return False
        if rounds <= self._round:
            self._round = self._steps = 0
        before = self._steps
        while self._round < rounds:
            before = self._steps
            self._steps += phase(self._round, self._sync).steps
            self._round += 1
        return self._steps // self._every > before // self._every
