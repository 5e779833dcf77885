"""The rules of the plan, in their order. Pure.

A whole pipeline comes first; no hole is opened to close another; a peer is moved only when nothing else helps, and not
again within its cool-down. Each rule sees the swarm as it will be when the ones before it are carried out. Actions can
be told again without harm, and the next call sees what became of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from itertools import islice

from distqat.ids import StageIndex
from distqat.roles.plan.actions import Action, Assign, Form
from distqat.roles.plan.follow import follow
from distqat.roles.plan.mend import end_lost, mend_broken
from distqat.roles.plan.outcome import after
from distqat.roles.plan.stock import Stock, helpers, movers
from distqat.roles.plan.view import ExpertView, View
from distqat.sections import PlanSection

Rule = Callable[[View, PlanSection, float], list[Action]]


def plan(view: View, section: PlanSection, now: float) -> Sequence[Action]:
    """The next wave of actions; none when the swarm is as it should be, or when what is under way must come first."""
    return _in_order((end_lost, mend_broken, form_whole, fill_holes, follow), view, section, now)


def keep(view: View, section: PlanSection, now: float) -> Sequence[Action]:
    """The same without new pipelines: only those that are there are kept whole."""
    return _in_order((end_lost, mend_broken, _fill_broken), view, section, now)


def _in_order(rules: Sequence[Rule], view: View, section: PlanSection, now: float) -> list[Action]:
    wave: list[Action] = []
    for rule in rules:
        actions = rule(view, section, now)
        view = after(view, actions, now)
        wave += actions
    return wave


def form_whole(view: View, section: PlanSection, now: float) -> list[Action]:
    """A ready free expert of every stage and a trainer make a pipeline."""
    if not view.trainers:
        return []
    room = max(0, section.max_pipelines - len(view.pipelines))
    load = Counter(dict.fromkeys(view.trainers, 0))
    load.update(pipeline.trainer for pipeline in view.pipelines)
    chains = zip(*(view.ready_at(stage) for stage in range(view.num_stages)), strict=False)
    forms: list[Action] = []
    for chain in islice(chains, room):
        trainer = min(view.trainers, key=lambda trainer: (load[trainer], trainer))
        load[trainer] += 1
        forms.append(Form(None, tuple(e.seat for e in chain), trainer, "every stage has a free expert"))
    return forms


def fill_holes(view: View, section: PlanSection, now: float) -> list[Action]:
    """Who is not needed where it is takes the stages that further whole pipelines lack.

    Spares go first, those that hold the state before all others; then free experts that their own stage does not need.
    Nobody moves for less than a whole pipeline. Only before the first one spares begin even if some holes stay open, so
    that little is left to do when others join.
    """
    return _fill(view, section, now, section.max_pipelines - len(view.pipelines) + len(view.lacks))


def _fill_broken(view: View, section: PlanSection, now: float) -> list[Action]:
    return _fill(view, section, now, len(view.lacks))


def _fill(view: View, section: PlanSection, now: float, most: int) -> list[Action]:
    """Assigns for at most so many pipelines beside those that work."""
    stock = Stock.of(view, section, now)
    count = stock.most(most)
    is_first = count == 0 and most > 0 and not view.pipelines
    surplus = [0] * view.num_stages if is_first else stock.surplus(count)
    moved = [
        expert
        for stage, number in enumerate(surplus)
        for expert in movers(view, view.free_at(stage), section, now)[:number]
    ]
    holes = [StageIndex(s) for s, number in enumerate(stock.holes(1 if is_first else count)) for _ in range(number)]
    holes.sort(key=lambda stage: -view.cost(stage))
    return [
        Assign(expert.peer, stage, f"stage {stage} of {view.num_stages} has no free expert")
        for stage, expert in _match(holes, helpers(view), moved)
    ]


def _match(
    holes: list[StageIndex], spares: list[ExpertView], moved: list[ExpertView]
) -> list[tuple[StageIndex, ExpertView]]:
    """Who takes which hole: who holds its state, then who gets it already; then the best where it costs most."""
    spares = sorted(spares, key=lambda e: (-e.speed, -e.downlink, e.peer))
    following: dict[tuple[StageIndex | None, bool], deque[ExpertView]] = defaultdict(deque)
    for spare in spares:
        following[spare.follows, spare.is_warm].append(spare)
    pairs: list[tuple[StageIndex, ExpertView]] = []
    for is_warm in (True, False):
        left: list[StageIndex] = []
        for stage in holes:
            if queue := following[stage, is_warm]:
                pairs.append((stage, queue.popleft()))
            else:
                left.append(stage)
        holes = left
    taken = {expert.peer for _, expert in pairs}
    # Warm ones last: the copy of another stage would be lost.
    others = sorted((e for e in spares if e.peer not in taken), key=lambda e: e.is_warm)
    return pairs + list(zip(holes, [*others, *moved], strict=False))
