"""What the planner knows of the swarm at one moment: frozen, of live peers only. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex
from distqat.roles.checkpoint.words import Begin

ALWAYS = float("-inf")
"""When something happened that nobody remembers."""


@dataclass(frozen=True)
class ExpertView:
    """What the planner knows of an expert; `stage` is None for a spare.

    `uplink` and `downlink` are bytes a second, `speed` is relative to others; 0 where nothing was measured.
    """

    peer: PeerId
    endpoint: Endpoint
    stage: StageIndex | None = None
    is_ready: bool = False
    is_pinned: bool = False
    follows: StageIndex | None = None  # The stage whose commits a spare keeps a copy of; None: of none.
    is_warm: bool = False  # The copy is complete: to take that stage moves no parameters.
    uplink: float = 0.0
    downlink: float = 0.0
    speed: float = 0.0

    def is_warm_for(self, stage: int) -> bool:
        """Whether it holds the state of that stage already."""
        return self.is_warm and self.follows == stage

    @property
    def seat(self) -> Seat:
        """Its place on a route; ValueError if it is a spare."""
        if self.stage is None:
            raise ValueError(f"{self.peer} is a spare and has no seat")
        return Seat(self.peer, self.endpoint, self.stage)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as planned: its route and who drives it."""

    id: PipelineId
    epoch: int
    route: tuple[Seat, ...]
    trainer: PeerId
    begin: Begin | None = None  # Where it goes on if it is new to its trainer; None: at its first step.


@dataclass(frozen=True)
class View:
    """What is known of the swarm at one moment; live peers only. Times are those of the clock that `plan` is given."""

    num_stages: int
    experts: tuple[ExpertView, ...]
    trainers: tuple[PeerId, ...]
    pipelines: tuple[Pipeline, ...] = ()
    failing: frozenset[PipelineId] = frozenset()  # Pipelines that do not open although all their peers live.
    moved: Mapping[PeerId, float] = field(default_factory=dict)  # When a peer was last told a stage, or whom to follow.
    promoting: Mapping[PeerId, float] = field(default_factory=dict)  # When a warm spare was told to take its stage.
    lacking: Mapping[PipelineId, float] = field(default_factory=dict)  # Since when a pipeline has lacked an expert.
    ending: frozenset[PipelineId] = frozenset()  # Pipelines told to stop: their experts are not free before they have.
    grace: float = 6.0  # Seconds for which a pipeline waits at most for who takes the place of a lost expert.
    costs: tuple[float, ...] = ()  # What each stage costs, relative to the others; empty: nothing is known of it.

    @cached_property
    def _by_peer(self) -> dict[PeerId, ExpertView]:
        return {expert.peer: expert for expert in self.experts}

    @cached_property
    def _used(self) -> frozenset[PeerId]:
        seats = (seat for pipeline in self.pipelines for seat in pipeline.route)
        return frozenset(seat.peer for seat in seats if self.serves(seat))

    @cached_property
    def _free(self) -> tuple[ExpertView, ...]:
        return tuple(e for e in self.experts if e.stage is not None and e.peer not in self._used)

    @cached_property
    def _free_by_stage(self) -> list[list[ExpertView]]:
        stages: list[list[ExpertView]] = [[] for _ in range(self.num_stages)]
        for expert in self._free:
            if expert.stage is not None and expert.stage < self.num_stages:
                stages[expert.stage].append(expert)
        for found in stages:
            found.sort(key=lambda e: (not e.is_ready, not e.is_pinned, -e.speed, -e.uplink, e.peer))
        return stages

    def expert(self, peer: PeerId) -> ExpertView | None:
        """The expert of that name, if it lives."""
        return self._by_peer.get(peer)

    def free(self) -> tuple[ExpertView, ...]:
        """Seated experts that serve no planned pipeline."""
        return self._free

    def spares(self) -> list[ExpertView]:
        """Experts without a stage."""
        return [expert for expert in self.experts if expert.stage is None]

    def free_at(self, stage: int) -> list[ExpertView]:
        """Free experts of one stage: the ready first, then those that can be used nowhere else, then the faster."""
        return self._free_by_stage[stage]

    def ready_at(self, stage: int) -> list[ExpertView]:
        """Free experts of one stage that can join a route now."""
        return [expert for expert in self._free_by_stage[stage] if expert.is_ready]

    def serves(self, seat: Seat) -> bool:
        """Whether that expert still lives there and hosts that stage; one that has begun anew does when it is ready."""
        expert = self._by_peer.get(seat.peer)
        if expert is None or not expert.is_ready:
            return False
        return expert.stage == seat.stage and expert.endpoint == seat.endpoint

    @cached_property
    def lacks(self) -> Mapping[PipelineId, tuple[Seat, ...]]:
        """The seats that are lost, of each pipeline that lost any and is to go on."""
        going = (pipeline for pipeline in self.pipelines if pipeline.id not in self.ending)
        lost = {p.id: tuple(seat for seat in p.route if not self.serves(seat)) for p in going}
        return {name: seats for name, seats in lost.items() if seats}

    def is_promoting(self, expert: ExpertView, now: float) -> bool:
        """Whether it takes a stage whose state it held already, and will be ready in a moment."""
        return not expert.is_ready and now - self.promoting.get(expert.peer, ALWAYS) <= self.grace

    def is_settled(self, peer: PeerId, cooldown: float, now: float) -> bool:
        """Whether its last change is so long ago that there may be another."""
        return now - self.moved.get(peer, ALWAYS) >= cooldown

    def cost(self, stage: int) -> float:
        """What a stage costs, relative to the others."""
        return self.costs[stage] if stage < len(self.costs) else 1.0
