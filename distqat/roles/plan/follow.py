"""Which stage each spare keeps a warm copy of: spread evenly, and changed only where much is gained. Pure."""

from __future__ import annotations

from distqat.ids import StageIndex, short
from distqat.roles.plan.actions import Action, Follow
from distqat.roles.plan.stock import helpers
from distqat.roles.plan.view import ExpertView, View
from distqat.sections import PlanSection

FOLLOWERS_PER_SEAT = 2
"""Spares that follow a stage at most, for each pipeline: more would load those that serve it, and help nobody."""

CLEAR_GAIN = 2
"""A spare changes what it follows only if its stage has so many more who could step in than the other one."""


def follow(view: View, section: PlanSection, now: float) -> list[Action]:
    """Spares that follow nothing are told a stage; one that does changes it if another has far fewer."""
    if not section.followers or not view.pipelines:
        return []
    cover = _Cover(view)
    spares = sorted(helpers(view), key=lambda e: (-e.speed, -e.downlink, e.peer))
    told: list[Action] = []
    for spare in spares:
        if spare.follows is None and (stage := cover.weakest()) is not None:
            told.append(Follow(spare.peer, stage, f"{cover.of(stage)} others could step in for a lost expert of it"))
            cover.begins(stage)
    # Who has no whole copy yet loses less.
    stage = cover.weakest()
    for spare in sorted(spares, key=lambda e: e.is_warm):
        if stage is not None and cover.gains(spare, stage) and view.is_settled(spare.peer, section.cooldown, now):
            told.append(Follow(spare.peer, stage, f"stage {spare.follows} has enough without {short(spare.peer)}"))
            cover.leaves(spare)
            cover.begins(stage)
            stage = cover.weakest()
    return told


class _Cover:
    """By stage, who could step in for a lost expert."""

    def __init__(self, view: View) -> None:
        stages = range(view.num_stages)
        self._view = view
        self._ready = [len(view.ready_at(stage)) for stage in stages]  # Free experts, and spares with a whole copy.
        self._all = [len(view.free_at(stage)) for stage in stages]  # Those too that are on the way there.
        self._followers = [0] * view.num_stages
        for spare in helpers(view):
            if spare.follows is not None:
                self._ready[spare.follows] += spare.is_warm
                self._all[spare.follows] += 1
                self._followers[spare.follows] += 1
        held = {e.stage for e in view.experts if e.is_ready}
        self._open = [StageIndex(stage) for stage in stages if stage in held]  # Where there is something to follow.
        self._most = FOLLOWERS_PER_SEAT * len(view.pipelines)

    def of(self, stage: StageIndex) -> int:
        """How many could step in there."""
        return self._all[stage]

    def weakest(self) -> StageIndex | None:
        """The stage with the fewest who could step in; of several the costliest."""
        able = (stage for stage in self._open if self._followers[stage] < self._most)
        return min(able, key=lambda stage: (self._all[stage], -self._view.cost(stage), stage), default=None)

    def begins(self, stage: StageIndex) -> None:
        """One more follows it."""
        self._all[stage] += 1
        self._followers[stage] += 1

    def gains(self, spare: ExpertView, stage: StageIndex) -> bool:
        """Whether much is gained if that spare followed this stage instead."""
        if spare.follows is None or (spare.is_warm and self._ready[spare.follows] == 1):
            return False
        return self._all[spare.follows] - self._all[stage] >= CLEAR_GAIN

    def leaves(self, spare: ExpertView) -> None:
        """It follows its stage no more."""
        assert spare.follows is not None
        self._ready[spare.follows] -= spare.is_warm
        self._all[spare.follows] -= 1
        self._followers[spare.follows] -= 1
