"""What an expert is told to be. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.ids import PeerId, StageIndex


@dataclass(frozen=True)
class Order:
    """A seat, a stage to follow, or nothing."""

    stage: StageIndex | None = None
    """None: wait for one."""
    is_seated: bool = True
    """False: stay a spare, and keep a warm copy of the stage."""
    heir_of: PeerId | None = None
    """The expert that leaves in good order and hands the seat over; None: nobody does."""

    @property
    def seat(self) -> StageIndex | None:
        """The stage of which it has the seat."""
        return self.stage if self.is_seated else None

    @property
    def follows(self) -> StageIndex | None:
        """The stage that it follows as a spare."""
        return None if self.is_seated else self.stage

    def is_promotion(self, before: Order) -> bool:
        """Whether it goes on with the stage that is held, only with a seat."""
        return self.stage is not None and self.is_seated and before.follows == self.stage


SPARE = Order()
