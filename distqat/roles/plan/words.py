"""Why the plan is where it is, in sentences for people. Pure."""

from __future__ import annotations

from distqat.ids import short
from distqat.roles.plan.view import View


def missing(view: View, most: int) -> str:
    """Why there is no further pipeline, in one sentence for people."""
    if not view.trainers:
        return "waiting: no trainer"
    for name, lost in view.lacks.items():
        coming = next((e for seat in lost for e in view.free_at(seat.stage) if not e.is_ready), None)
        if coming is None:
            return f"waiting: pipeline {name} lost {lost[0]}, and nobody has taken its place yet"
        return f"waiting: pipeline {name} lost {lost[0]}; {short(coming.peer)}, who takes its place, is not ready yet"
    if len(view.pipelines) >= most:
        return f"waiting: there are as many pipelines as plan.max_pipelines allows ({most})"
    held = {expert.stage for expert in view.experts}
    holes = [stage for stage in range(view.num_stages) if stage not in held]
    if holes:
        return f"waiting: stage {holes[0]} of {view.num_stages} has no expert"
    starting = [e for e in view.free() if not e.is_ready]
    if starting:
        return f"waiting: stage {starting[0].stage} on {short(starting[0].peer)} is not ready yet"
    return "waiting: no free expert for every stage"
