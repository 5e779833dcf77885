"""What the peers said of themselves as the planner sees it: experts, trainers, what stages cost. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distqat.discovery.view import Entry, Snapshot
from distqat.ids import Endpoint, PeerId, RunId, StageIndex
from distqat.roles.plan import ExpertView, Pipeline, View
from distqat.roles.status import ExpertStatus, PeerStatus, PipelineStatus


def address(snapshot: Snapshot, peer: PeerId) -> Endpoint | None:
    """Where the peer answers: the newest of its records says it, since others may be of an earlier life of the daemon;
    None if it has none."""
    sections: Sequence[Mapping[PeerId, Entry[Any]]] = (snapshot.peers, snapshot.experts, snapshot.trainers)
    entries = [section[peer] for section in sections if peer in section]
    newest = max(entries, key=lambda entry: entry.sequence, default=None)
    return newest.record.endpoint if newest is not None else None


def outlook(
    statuses: Mapping[PeerId, PeerStatus], run: RunId, num_stages: int, pipelines: Iterable[Pipeline] = ()
) -> View:
    """The live peers of a run, as they described themselves last, and the pipelines as planned."""
    experts: list[ExpertView] = []
    facts: list[ExpertStatus] = []
    trainers: list[PeerId] = []
    for peer, status in sorted(statuses.items()):
        if status.run != run:
            continue
        for role in status.roles:
            if role.expert is not None and role.phase not in ("failed", "draining"):
                experts.append(expert_view(peer, status.endpoint, role.expert))
                facts.append(role.expert)
            elif role.role == "trainer" and role.phase in ("waiting", "training"):
                trainers.append(peer)
    costs = stage_costs(facts, num_stages)
    return View(num_stages, tuple(experts), tuple(trainers), tuple(pipelines), costs=costs)


def lines(statuses: Mapping[PeerId, PeerStatus], run: RunId) -> list[tuple[PeerId, PipelineStatus]]:
    """The pipelines as the live trainers of this run described them last."""
    return [
        (peer, line)
        for peer, status in sorted(statuses.items())
        if status.run == run
        for role in status.roles
        for line in role.pipelines
    ]


def is_leaving(statuses: Mapping[PeerId, PeerStatus], peer: PeerId) -> bool:
    """Whether an expert is there, and finishes what it does."""
    status = statuses.get(peer)
    role = status.role("expert") if status is not None else None
    return role is not None and role.phase == "draining"


def testator(statuses: Mapping[PeerId, PeerStatus], pipelines: Iterable[Pipeline], stage: StageIndex) -> PeerId | None:
    """An expert of that stage that leaves in good order, and whose pipeline waits for who takes its place."""
    seats = (seat for pipeline in pipelines for seat in pipeline.route if seat.stage == stage)
    return next((seat.peer for seat in seats if is_leaving(statuses, seat.peer)), None)


def expert_view(peer: PeerId, endpoint: Endpoint, expert: ExpertStatus) -> ExpertView:
    """One expert."""
    stage = StageIndex(expert.stage) if expert.seated else None
    follows = StageIndex(expert.follows) if expert.follows is not None else None
    view = ExpertView(peer, endpoint, stage, expert.ready, expert.pinned, follows, expert.warm)
    return replace(view, uplink=expert.uplink, downlink=expert.downlink, speed=speed(expert))


def speed(expert: ExpertStatus) -> float:
    """Parameters times samples for each second that the device computed; 0 before it has committed a step."""
    if expert.times is None or not expert.times.compute:
        return 0.0
    return expert.parameters * expert.samples_per_second * expert.times.seconds / expert.times.compute


def stage_costs(experts: Iterable[ExpertStatus], num_stages: int) -> tuple[float, ...]:
    """Parameters of every stage, as its experts say; empty while those of one are unknown."""
    known = {expert.stage: float(expert.parameters) for expert in experts if expert.seated and expert.parameters}
    costs = tuple(known.get(stage, 0.0) for stage in range(num_stages))
    return costs if all(costs) else ()
