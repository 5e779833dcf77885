"""The pipelines of one run: as its client has planned them, and as their trainers describe them."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace

from distqat.config import RunConfig
from distqat.ids import PeerId, PipelineId
from distqat.roles.leases import Leases
from distqat.roles.outlook import lines, outlook
from distqat.roles.plan import Pipeline, View
from distqat.roles.status import PipelineStatus

log = logging.getLogger(__name__)

BROKEN_LEASES = 3.0
"""Leases for which a pipeline may be broken while all its peers live; then it is given up and its peers regroup."""

GRACE_LEASES = 2.0
"""Leases for which a pipeline waits at most for who takes the place of a lost expert."""


class Lineup:
    """What the planner knows of pipelines from one look to the next."""

    def __init__(self, config: RunConfig, leases: Leases) -> None:
        self.known: dict[PipelineId, Pipeline] = {}
        self.reasons: dict[PipelineId, str] = {}  # Why each of these is as it is.
        self.ended: set[PipelineId] = set()  # Pipelines that are to be no more, whatever their trainers still say.
        self.fenced: set[PipelineId] = set()  # Of the known ones: a fence was begun, and their routes open no more.
        self.moved: dict[PeerId, float] = {}  # When an expert was last given a stage.
        self.promoting: dict[PeerId, float] = {}  # When a warm spare was last told to take its stage.
        self._config = config
        self._leases = leases
        self._nonce = os.urandom(2).hex()  # Keeps the names of pipelines apart from those of an earlier client.
        self._formed = 0  # Pipelines formed so far; names the next one.
        self._lacking: dict[PipelineId, float] = {}  # Since when a pipeline has lacked an expert.
        self._broken: dict[tuple[PipelineId, int], float] = {}  # Since when a trainer has called a route broken.

    def __repr__(self) -> str:
        return f"<Lineup of {len(self.known)} pipelines>"

    def statuses(self) -> tuple[PipelineStatus, ...]:
        """The pipelines as planned; what they do is said by their trainers."""
        return tuple(
            PipelineStatus(line.id, line.epoch, line.route, reason=self.reasons[line.id])
            for line in self.known.values()
        )

    def new_name(self) -> PipelineId:
        """Of a pipeline that is formed now."""
        self._formed += 1
        return PipelineId(f"p{self._formed}-{self._nonce}")

    def plan(self, pipeline: Pipeline, why: str) -> None:
        """This is how it is to be from now on."""
        self.known[pipeline.id], self.reasons[pipeline.id] = pipeline, why

    def end(self, name: PipelineId) -> None:
        """It is no more. Its trainer's last account still shows it, and must not bring it back."""
        del self.known[name]
        del self.reasons[name]
        self.fenced.discard(name)
        self.ended.add(name)

    def end_all(self) -> None:
        """What they did is of a course that the run has left; who still drives one is told to stop."""
        self.ended |= self.known.keys()
        self.known.clear()
        self.reasons.clear()

    def lines(self) -> list[tuple[PeerId, PipelineStatus]]:
        """As live trainers describe them, and who."""
        return lines(self._leases.statuses, self._config.id)

    def adopt(self) -> list[Pipeline]:
        """Pipelines that an earlier client formed, and that a live trainer still drives, are this client's now: these
        are new here."""
        adopted = []
        for peer, line in self.lines():
            name = PipelineId(line.pipeline)
            if self.is_stray(name) or name in self.known or not line.route:
                continue
            if {seat.peer for seat in line.route} & {s.peer for known in self.known.values() for s in known.route}:
                # Two clients planned at once. Both pipelines would displace each other at the expert that they share.
                log.info("pipeline %s shares an expert with another one and is ended", name)
                self.ended.add(name)
                continue
            self.plan(Pipeline(name, line.epoch, line.route, peer), "formed by an earlier client")
            adopted.append(self.known[name])
        return adopted

    def is_stray(self, name: PipelineId) -> bool:
        """Whether a pipeline is one that this client has ended, or that it formed and gave up."""
        return name in self.ended or (name.endswith(self._nonce) and name not in self.known)

    def is_driven(self, pipeline: Pipeline) -> bool:
        """Whether its trainer is there and speaks of it: then it books its last steps itself."""
        return any((peer, line.pipeline) == (pipeline.trainer, pipeline.id) for peer, line in self.lines())

    def view(self) -> View:
        """The live peers, as they described themselves last."""
        now = asyncio.get_running_loop().time()
        stages, grace = self._config.model.stages, GRACE_LEASES * self._leases.seconds
        view = outlook(self._leases.statuses, self._config.id, stages, self.known.values())
        view = replace(view, moved=self.moved, promoting=self.promoting, grace=grace)
        self._lacking = {name: self._lacking.get(name, now) for name in view.lacks}
        return replace(view, lacking=self._lacking, failing=self._failing(now))

    def _failing(self, now: float) -> frozenset[PipelineId]:
        """Pipelines that have been broken for so long that opening their routes again will not help."""
        broken = {line.pipeline for _, line in self.lines() if line.phase == "broken"}
        # A route that is waited for, or that was renewed, has its time from then on.
        routes = [(p.id, p.epoch) for p in self.known.values() if p.id in broken and p.id not in self._lacking]
        self._broken = {route: self._broken.get(route, now) for route in routes}
        patience = BROKEN_LEASES * self._leases.seconds
        return frozenset(name for (name, _), since in self._broken.items() if now - since > patience)
