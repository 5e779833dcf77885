"""Who hosts what: a plain function from what is known of the swarm to what should be done next.

The rules stand in `plan` in their order. A whole pipeline comes first; no hole is opened to close another; a peer is
moved only when nothing else helps, and not again within its cool-down. Each call answers with one wave of actions;
they are idempotent, and the next call sees what became of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex, short
from distqat.sections import PlanSection


@dataclass(frozen=True)
class ExpertView:
    """What the planner knows of an expert; `stage` is None for a spare."""

    peer: PeerId
    endpoint: Endpoint
    stage: StageIndex | None = None
    is_ready: bool = False
    is_pinned: bool = False


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as planned: its route and who drives it."""

    id: PipelineId
    epoch: int
    route: tuple[Seat, ...]
    trainer: PeerId


@dataclass(frozen=True)
class View:
    """What is known of the swarm at one moment; live peers only."""

    num_stages: int
    experts: tuple[ExpertView, ...]
    trainers: tuple[PeerId, ...]
    pipelines: tuple[Pipeline, ...] = ()
    failing: frozenset[PipelineId] = frozenset()  # Pipelines that do not open although all their peers live.
    moved: Mapping[PeerId, float] = field(default_factory=dict)  # When a peer was last assigned a stage.

    def free(self) -> list[ExpertView]:
        """Seated experts that no planned pipeline uses."""
        used = {seat.peer for pipeline in self.pipelines for seat in pipeline.route}
        return [expert for expert in self.experts if expert.stage is not None and expert.peer not in used]

    def spares(self) -> list[ExpertView]:
        """Experts without a stage."""
        return [expert for expert in self.experts if expert.stage is None]

    def free_at(self, stage: int) -> list[ExpertView]:
        """Free experts of one stage, the ready ones first."""
        return sorted((e for e in self.free() if e.stage == stage), key=lambda e: (not e.is_ready, e.peer))


@dataclass(frozen=True)
class Assign:
    """Give a stage to an expert."""

    peer: PeerId
    stage: StageIndex
    why: str


@dataclass(frozen=True)
class Form:
    """Let a trainer drive this route; id None: a new pipeline."""

    id: PipelineId | None
    route: tuple[Seat, ...]
    trainer: PeerId
    why: str


@dataclass(frozen=True)
class Dissolve:
    """Stop a pipeline; its experts are free for others."""

    id: PipelineId
    why: str


Action = Assign | Form | Dissolve


def plan(view: View, section: PlanSection, now: float) -> Sequence[Action]:
    """The next wave of actions, from the first rule that has any; none when the swarm is as it should be."""
    return mend_broken(view) or form_whole(view, section) or fill_holes(view, section, now) or []


def mend_broken(view: View) -> list[Action]:
    """A pipeline that lost experts gets others at once; one that cannot be mended is dissolved, to free the rest."""
    actions: list[Action] = []
    taken: set[PeerId] = set()
    for pipeline in view.pipelines:
        broken = [seat for seat in pipeline.route if not _serves(view, seat)]
        if pipeline.trainer not in view.trainers:
            # Another trainer does not know which of its steps are committed: it begins a pipeline of its own.
            actions.append(Dissolve(pipeline.id, f"lost trainer {short(pipeline.trainer)}"))
            continue
        if pipeline.id in view.failing:
            actions.append(Dissolve(pipeline.id, "its route does not open, although all its peers live"))
            continue
        if not broken:
            continue
        lost = ", ".join(str(seat) for seat in broken)
        instead = {seat.stage: _replacement(view, seat.stage, taken) for seat in broken}
        route = tuple(instead.get(seat.stage, seat) for seat in pipeline.route)
        whole = tuple(seat for seat in route if seat is not None)
        if len(whole) < len(route):
            actions.append(Dissolve(pipeline.id, f"lost {lost}"))
            continue
        taken |= {seat.peer for seat in whole}
        actions.append(Form(pipeline.id, whole, pipeline.trainer, f"replaces {lost}"))
    return actions


def form_whole(view: View, section: PlanSection) -> list[Action]:
    """A ready free expert of every stage and a trainer make a pipeline."""
    if len(view.pipelines) >= section.max_pipelines:
        return []
    chain = [next((e for e in view.free_at(stage) if e.is_ready), None) for stage in range(view.num_stages)]
    trainer = _idlest(view)
    route = tuple(_seat(expert) for expert in chain if expert is not None)
    if len(route) < view.num_stages or trainer is None:
        return []
    return [Form(None, route, trainer, "every stage has a free expert")]


def fill_holes(view: View, section: PlanSection, now: float) -> list[Action]:
    """Who is not needed where it is takes the stages that are missing for the next whole pipeline.

    Spares go first. Of several free experts of one stage all but one may follow, if that completes the pipeline. Before
    the first pipeline spares begin even if some holes stay open, so that little is left to do when others join.
    """
    if len(view.pipelines) >= section.max_pipelines:
        return []
    holes = [stage for stage in range(view.num_stages) if not view.free_at(stage)]
    spares, surplus = view.spares(), _surplus(view, section, now)
    is_whole = len(spares) + len(surplus) >= len(holes)
    if not is_whole and view.pipelines:
        return []
    helpers = [*spares, *(surplus if is_whole else [])]
    return [
        Assign(helper.peer, StageIndex(stage), f"stage {stage} of {view.num_stages} has no free expert")
        for stage, helper in zip(holes, helpers, strict=False)
    ]


def missing(view: View) -> str:
    """Why there is no further pipeline, in one sentence for people."""
    if not view.trainers:
        return "waiting: no trainer"
    holes = [stage for stage in range(view.num_stages) if not any(e.stage == stage for e in view.experts)]
    if holes:
        return f"waiting: stage {holes[0]} of {view.num_stages} has no expert"
    starting = [e for e in view.free() if not e.is_ready]
    if starting:
        return f"waiting: stage {starting[0].stage} on {short(starting[0].peer)} is not ready yet"
    return "waiting: no free expert for every stage"


def _surplus(view: View, section: PlanSection, now: float) -> list[ExpertView]:
    """Free experts beyond the first of their stage that may be moved now."""
    return [
        expert
        for stage in range(view.num_stages)
        for expert in view.free_at(stage)[1:]
        if not expert.is_pinned and now - view.moved.get(expert.peer, float("-inf")) >= section.cooldown
    ]


def _serves(view: View, seat: Seat) -> bool:
    return any(e.peer == seat.peer and e.stage == seat.stage and e.endpoint == seat.endpoint for e in view.experts)


def _seat(expert: ExpertView) -> Seat:
    assert expert.stage is not None
    return Seat(expert.peer, expert.endpoint, expert.stage)


def _replacement(view: View, stage: int, taken: set[PeerId]) -> Seat | None:
    found = (e for e in view.free_at(stage) if e.is_ready and e.peer not in taken)
    expert = next(found, None)
    return _seat(expert) if expert is not None else None


def _idlest(view: View) -> PeerId | None:
    """The trainer that drives the fewest pipelines."""
    load = {trainer: sum(p.trainer == trainer for p in view.pipelines) for trainer in view.trainers}
    return min(load, key=lambda trainer: (load[trainer], trainer), default=None)
