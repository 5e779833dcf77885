"""What one call of `synchronise` works with, besides what `round` knows: the vectors."""

from __future__ import annotations

from dataclasses import dataclass, field

from distqat.averaging.contribution import Average, Contribution
from distqat.averaging.group import Group
from distqat.averaging.outer import OuterState


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a round would end with; committed only when the leader says so."""

    state: OuterState
    group: Group
    average: Average
    contribution: Contribution | None


@dataclass
class Effort:
    """One way to a committed round, over as many attempts as it takes."""

    contribution: Contribution | None
    """What this sibling brings; None if it has nothing to contribute."""
    began: float
    caught: list[bool] = field(default_factory=list)
    """Of each time that it had to catch up: whether it replayed the rounds that it missed."""

    @property
    def is_replayed(self) -> bool:
        """Whether it has come to what is committed by replaying the rounds that it missed, and in no other way."""
        return bool(self.caught) and all(self.caught)
