"""The swarm as it will be once actions are carried out, so that the next rule decides on top of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from distqat.ids import PeerId, PipelineId
from distqat.roles.plan.actions import Action, Assign, Dissolve, Follow, Form
from distqat.roles.plan.view import ExpertView, Pipeline, View


def after(view: View, actions: Sequence[Action], now: float) -> View:
    """The view after those actions.

    Who was given a stage is not ready yet, and what is dissolved holds its experts until the next look: it may take a
    while until they have left it.
    """
    if not actions:
        return view
    experts: dict[PeerId, ExpertView] = {expert.peer: expert for expert in view.experts}
    pipelines = {pipeline.id: pipeline for pipeline in view.pipelines}
    moved, promoting, ending = dict(view.moved), dict(view.promoting), set(view.ending)
    for action in actions:
        match action:
            case Assign(peer, stage):
                if experts[peer].is_warm_for(stage):
                    promoting[peer] = now
                experts[peer] = replace(experts[peer], stage=stage, is_ready=False)
                moved[peer] = now
            case Follow(peer, stage):
                experts[peer] = replace(experts[peer], follows=stage, is_warm=False)
                moved[peer] = now
            case Form(None, route, trainer):
                name = PipelineId(f"new on {route[0].peer}")
                pipelines[name] = Pipeline(name, 1, route, trainer)
            case Form(name, route, trainer):
                pipelines[name] = Pipeline(name, pipelines[name].epoch + 1, route, trainer)
            case Dissolve(name):
                ending.add(name)
    return replace(
        view,
        experts=tuple(experts.values()),
        pipelines=tuple(pipelines.values()),
        moved=moved,
        promoting=promoting,
        ending=frozenset(ending),
    )
