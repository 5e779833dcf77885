"""A pipeline that lost experts: who takes their places, and which are given up so that others are whole. Pure.

The order is that of the time it takes: a free sibling is there at once, a warm spare in a moment; two broken pipelines
become a whole one nearly at once, but one of them ends; who has no state yet takes as long as the state takes to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distqat.ids import PipelineId, Seat, short
from distqat.roles.plan.actions import Action, Assign, Dissolve, Form
from distqat.roles.plan.outcome import after
from distqat.roles.plan.stock import Stock, helpers, movers, survivors
from distqat.roles.plan.view import ExpertView, Pipeline, View
from distqat.sections import PlanSection


def end_lost(view: View, section: PlanSection, now: float) -> list[Action]:
    """Pipelines that nobody drives, or that do not open although all are there, are dissolved."""
    trainers = frozenset(view.trainers)
    actions: list[Action] = []
    for pipeline in view.pipelines:
        if pipeline.trainer not in trainers:
            # Another trainer does not know which of its steps are committed: it begins a pipeline of its own.
            actions.append(Dissolve(pipeline.id, f"lost trainer {short(pipeline.trainer)}"))
        elif pipeline.id in view.failing and pipeline.id not in view.lacks:
            actions.append(Dissolve(pipeline.id, "its route does not open, although all its peers live"))
    return actions


def mend_broken(view: View, section: PlanSection, now: float) -> list[Action]:
    """Pipelines that lost experts get others, wait for them, or are dissolved to free the rest."""
    broken = sorted((p for p in view.pipelines if p.id in view.lacks), key=lambda p: (len(view.lacks[p.id]), p.id))
    if not broken:
        return []
    shelf = _Shelf.of(view, now)
    actions: list[Action] = []
    rest: list[Pipeline] = []
    for pipeline in broken:
        found = shelf.take(view.lacks[pipeline.id], shelf.ready_for)
        if found is None:
            rest.append(pipeline)
        else:
            actions.append(_mended(view, pipeline, [expert.seat for expert in found]))
    waiting: list[Pipeline] = []
    left: list[Pipeline] = []
    for pipeline in rest:
        found = shelf.take(view.lacks[pipeline.id], shelf.soon_for) if _may_wait(view, pipeline, now) else None
        if found is None:
            left.append(pipeline)
        else:
            waiting.append(pipeline)
            actions += _promoted(view, pipeline, found)
    kept, donors, left = _regroup(view, left, shelf)
    actions += [Dissolve(p.id, f"lost {_lost(view, p)}; another becomes whole with the rest") for p in donors]
    return actions + _give_up(after(view, actions, now), section, now, len(waiting) + len(kept), left)


@dataclass
class _Shelf:
    """Who can take a lost place soon, by stage; whom one pipeline takes is not there for the next."""

    ready: list[list[ExpertView]]  # Free and ready.
    soon: list[list[ExpertView]]  # About to be ready, or spares that hold the state.

    @classmethod
    def of(cls, view: View, now: float) -> _Shelf:
        stages = range(view.num_stages)
        soon = [[e for e in view.free_at(stage) if view.is_promoting(e, now)] for stage in stages]
        for spare in helpers(view):
            if spare.is_warm and spare.follows is not None and spare.follows < view.num_stages:
                soon[spare.follows].append(spare)
        return cls([view.ready_at(stage) for stage in stages], soon)

    def ready_for(self, stage: int) -> list[ExpertView]:
        """Who can take that stage at once."""
        return self.ready[stage]

    def soon_for(self, stage: int) -> list[ExpertView]:
        """Who can take it at once or in a moment."""
        return self.ready[stage] or self.soon[stage]

    def take(self, lost: Sequence[Seat], source: Callable[[int], list[ExpertView]]) -> list[ExpertView] | None:
        """One for every lost seat; None, and nothing is taken, if one of them finds nobody."""
        if not all(source(seat.stage) for seat in lost):
            return None
        return [source(seat.stage).pop(0) for seat in lost]


def _may_wait(view: View, pipeline: Pipeline, now: float) -> bool:
    return now - view.lacking.get(pipeline.id, now) <= view.grace


def _mended(view: View, pipeline: Pipeline, found: Sequence[Seat]) -> Form:
    """The pipeline with those seats instead of the lost ones."""
    instead = {seat.stage: seat for seat in found}
    route = tuple(instead.get(seat.stage, seat) for seat in pipeline.route)
    return Form(pipeline.id, route, pipeline.trainer, f"replaces {_lost(view, pipeline)}")


def _promoted(view: View, pipeline: Pipeline, found: Sequence[ExpertView]) -> list[Action]:
    """The spares among those take the lost places; the pipeline waits for them."""
    places = zip(view.lacks[pipeline.id], found, strict=True)
    return [
        Assign(expert.peer, seat.stage, f"holds the state of stage {seat.stage}, which {pipeline.id} lost")
        for seat, expert in places
        if expert.stage is None
    ]


def _regroup(
    view: View, broken: Sequence[Pipeline], shelf: _Shelf
) -> tuple[list[Pipeline], list[Pipeline], list[Pipeline]]:
    """As many whole pipelines as the survivors and the free siblings make: who stays, who ends for them, and the rest.

    Those that lost least stay, with their trainers; the experts that they need come from those that lost most. They
    get them when these have left their pipeline, as free siblings.
    """
    alive = {p.id: {seat.stage for seat in survivors(view, p)} for p in broken}
    stages = range(view.num_stages)
    whole = min(sum(stage in held for held in alive.values()) + len(shelf.ready[stage]) for stage in stages)
    kept, others = broken[:whole], broken[whole:]
    donors: dict[PipelineId, Pipeline] = {}
    for lost in (seat.stage for pipeline in kept for seat in view.lacks[pipeline.id]):
        if shelf.ready[lost]:
            shelf.ready[lost].pop(0)
            continue
        donor = next(p for p in (*donors.values(), *reversed(others)) if lost in alive[p.id])
        donors[donor.id] = donor
        alive[donor.id].remove(lost)
    return list(kept), list(donors.values()), [pipeline for pipeline in others if pipeline.id not in donors]


def _give_up(view: View, section: PlanSection, now: float, waiting: int, broken: Sequence[Pipeline]) -> list[Action]:
    """Dissolves those that cannot become whole, beside so many waiting ones, or that have waited too long."""
    stock = Stock.of(view, section, now)
    hopeful = [pipeline for pipeline in broken if _may_wait(view, pipeline, now)]
    given_up = [pipeline for pipeline in broken if not _may_wait(view, pipeline, now)]
    for pipeline in given_up:
        stock.free(movers(view, _experts(view, pipeline), section, now))
    while hopeful and not stock.covers(waiting + len(hopeful)):
        given_up.append(hopeful.pop())
        stock.free(movers(view, _experts(view, given_up[-1]), section, now))
    return [Dissolve(pipeline.id, f"lost {_lost(view, pipeline)}") for pipeline in given_up]


def _experts(view: View, pipeline: Pipeline) -> list[ExpertView]:
    found = (view.expert(seat.peer) for seat in survivors(view, pipeline))
    return [expert for expert in found if expert is not None]


def _lost(view: View, pipeline: Pipeline) -> str:
    return ", ".join(str(seat) for seat in view.lacks[pipeline.id])
