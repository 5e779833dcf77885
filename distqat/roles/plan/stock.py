"""How many whole pipelines can be made of who is in none that works. Pure.

A count is all that is needed: an expert serves its own stage, and a spare, or one that may be moved, any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distqat.ids import Seat
from distqat.roles.plan.view import ExpertView, Pipeline, View
from distqat.sections import PlanSection


@dataclass
class Stock:
    """Experts that are in no working pipeline."""

    have: list[int]  # By stage: those seated there, ready or not, survivors of broken and ending pipelines too.
    movable: list[int]  # By stage: those of them that may be given another one.
    spares: int

    @classmethod
    def of(cls, view: View, section: PlanSection, now: float) -> Stock:
        """What there is now; survivors stay where they are as long as their pipeline does."""
        have, movable = [0] * view.num_stages, [0] * view.num_stages
        for stage in range(view.num_stages):
            have[stage] = len(view.free_at(stage))
            movable[stage] = len(movers(view, view.free_at(stage), section, now))
        for pipeline in view.pipelines:
            if pipeline.id in view.lacks or pipeline.id in view.ending:
                for seat in survivors(view, pipeline):
                    have[seat.stage] += 1
        return cls(have, movable, len(helpers(view)))

    def free(self, experts: Iterable[ExpertView]) -> None:
        """These may be moved too, since their pipeline is given up."""
        for expert in experts:
            self.movable[expert.seat.stage] += 1

    def holes(self, count: int) -> list[int]:
        """By stage, how many experts it lacks for so many whole pipelines."""
        return [max(0, count - have) for have in self.have]

    def surplus(self, count: int) -> list[int]:
        """By stage, how many may be moved without it lacking any for so many whole pipelines."""
        return [min(movable, max(0, have - count)) for have, movable in zip(self.have, self.movable, strict=True)]

    def covers(self, count: int) -> bool:
        """Whether so many whole pipelines can be made."""
        return sum(self.holes(count)) <= self.spares + sum(self.surplus(count))

    def most(self, limit: int) -> int:
        """How many whole pipelines can be made, up to a limit."""
        count = 0
        while count < limit and self.covers(count + 1):
            count += 1
        return count


def helpers(view: View) -> list[ExpertView]:
    """Spares that may be given any stage."""
    return [expert for expert in view.spares() if not expert.is_pinned]


def movers(view: View, experts: Iterable[ExpertView], section: PlanSection, now: float) -> list[ExpertView]:
    """Those that may be given another stage now; first who loses least by it."""
    able = (
        e
        for e in experts
        if not e.is_pinned and not view.is_promoting(e, now) and view.is_settled(e.peer, section.cooldown, now)
    )
    return sorted(able, key=lambda e: (e.is_ready, e.speed, e.peer))


def survivors(view: View, pipeline: Pipeline) -> list[Seat]:
    """The seats of a pipeline that are not lost."""
    return [seat for seat in pipeline.route if view.serves(seat)]
