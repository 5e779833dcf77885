"""The planner alone, on a clock of its own: hosts that leave, hang and come back, and what becomes of each action.

State travels in bytes over each host's own link, a warm spare takes its stage in `PROMOTION_SECONDS`, and a route opens
in `OPENING_SECONDS`. A crash is known at the next look, a hang after a lease. `Oracle` is the greedy count of whole
pipelines that the hosts could form if they could be moved at will; after each look the swarm is held against it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex
from distqat.roles.plan import Action, Assign, Dissolve, ExpertView, Follow, Form, Pipeline, View, plan
from distqat.sections import PlanSection

LOOK_SECONDS = 0.25
LEASE_SECONDS = 3.0
PROMOTION_SECONDS = 0.2
OPENING_SECONDS = 0.1
GRACE_SECONDS = 2 * LEASE_SECONDS
LOOKS = 6
"""Looks that a repair may take beside all that it waits for."""


@dataclass
class Host:
    """One daemon with the role expert, as it is."""

    peer: PeerId
    rate: float  # Bytes a second of its link.
    pinned: StageIndex | None = None
    speed: float = 0.0
    is_alive: bool = True
    hung_since: float | None = None
    stage: StageIndex | None = None
    is_ready: bool = False
    follows: StageIndex | None = None
    is_warm: bool = False
    order: int = 0  # Counts its orders: what an older one began is void.

    @property
    def works(self) -> bool:
        """Whether it lives and answers."""
        return self.is_alive and self.hung_since is None

    def view(self) -> ExpertView:
        """As the planner is told of it."""
        return ExpertView(
            self.peer,
            Endpoint(self.peer, 1),
            self.stage,
            self.is_ready,
            self.pinned is not None,
            self.follows,
            self.is_warm,
            downlink=self.rate,
            speed=self.speed,
        )


@dataclass
class Tally:
    """What happened in a trace."""

    losses: int = 0
    trainer_losses: int = 0  # Pipelines whose trainer was lost.
    joins: int = 0
    moved: int = 0  # Experts that had a stage and were given another.
    dissolved: int = 0
    promoted: int = 0
    looks: int = 0


@dataclass
class Shape:
    """A swarm to be: what its stages weigh, in bytes, and how many of everything there are."""

    sizes: tuple[float, ...]
    rates: tuple[float, ...]
    pins: dict[int, int] = field(default_factory=dict)  # Stage by index of the host.
    trainers: int = 2
    section: PlanSection = field(default_factory=PlanSection)

    @property
    def repair_seconds(self) -> float:
        """After a fault, the longest time for which there may be fewer whole pipelines than the oracle has."""
        transfer = max(self.sizes) / min(self.rates)
        looks = LOOKS * LOOK_SECONDS
        return LEASE_SECONDS + self.section.cooldown + transfer + PROMOTION_SECONDS + OPENING_SECONDS + looks


class Planned:
    """A swarm under the plan."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.now = 0.0
        self.tally = Tally()
        self.hosts: dict[PeerId, Host] = {}
        self.trainers = {PeerId(f"trainer{n}"): True for n in range(shape.trainers)}
        self.pipelines: dict[PipelineId, Pipeline] = {}
        self.opening: dict[PipelineId, float] = {}  # When its present route is open.
        self._moved: dict[PeerId, float] = {}
        self._promoting: dict[PeerId, float] = {}
        self._lacking: dict[PipelineId, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._formed = 0
        self._running = 0  # Pipelines that run, as counted last.
        self._changed = 0.0  # When anything happened last; long after it there is nothing to decide.
        self._oracles: deque[tuple[float, int]] = deque()
        self._faults: deque[tuple[float, int]] = deque()
        for index, rate in enumerate(shape.rates):
            peer = PeerId(f"host{index:03}")
            self.hosts[peer] = Host(peer, rate, speed=rate)
            if index in shape.pins:
                self.hosts[peer].pinned = StageIndex(shape.pins[index])
            self._begin(self.hosts[peer])

    # What befalls the swarm.

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Let something happen."""
        heapq.heappush(self._events, (time, next(self._serial), event))

    def crash(self, peer: PeerId) -> None:
        """The host is gone, with all that it held."""
        host = self.hosts[peer]
        if host.is_alive:
            host.is_alive, host.hung_since = False, None
            host.order += 1
            self._fault(1)
            self.tally.losses += 1

    def hang(self, peer: PeerId) -> None:
        """The host answers nobody, and keeps what it has."""
        host = self.hosts[peer]
        if host.works:
            host.hung_since = self.now
            self._fault(1)
            self.tally.losses += 1

    def back(self, peer: PeerId) -> None:
        """A host that crashed comes as a new one; one that hung goes on with what it had."""
        host = self.hosts[peer]
        if host.works:
            return
        self.tally.joins += 1
        if host.is_alive:
            host.hung_since = None
        else:
            self._begin(host)
        self._changed = self.now

    def lose_trainer(self, trainer: PeerId) -> None:
        """A trainer is gone, and the pipelines that it drove with it."""
        if self.trainers[trainer]:
            self.trainers[trainer] = False
            driven = sum(p.trainer == trainer for p in self.pipelines.values())
            self._fault(driven)
            self.tally.trainer_losses += driven

    def trainer_back(self, trainer: PeerId) -> None:
        """It drives nothing yet."""
        self.trainers[trainer] = True
        self._changed = self.now

    def run(self, until: float) -> None:
        """Look at the swarm again and again, and hold it against the oracle after each look."""
        look = self.now
        while look <= until:
            while self._events and self._events[0][0] <= look:
                self.now, _, event = heapq.heappop(self._events)
                event()
                if not self._events or self._events[0][0] > self.now:
                    self._note()
            self.now = look
            if self.now - self._changed <= max(self.shape.section.cooldown, GRACE_SECONDS) + 2 * LOOK_SECONDS:
                self._look()
                self._note()
            self._judge()
            look += LOOK_SECONDS

    # What is so.

    def running(self) -> int:
        """Pipelines that train: all of their experts are there and ready, and their route is open."""
        return sum(self.opening[p.id] <= self.now and self._is_whole(p) for p in self.pipelines.values())

    def oracle(self) -> int:
        """Pipelines that work, and those that all others could form if they could be moved at will."""
        if not any(self.trainers.values()):
            return 0
        whole = [p for p in self.pipelines.values() if self._is_whole(p)]
        used = {seat.peer for pipeline in whole for seat in pipeline.route}
        pool = [host for host in self.hosts.values() if host.works and host.peer not in used]
        pins = [sum(host.pinned == stage for host in pool) for stage in range(len(self.shape.sizes))]
        others = sum(host.pinned is None for host in pool)
        more = 0
        while len(whole) + more < self.shape.section.max_pipelines:
            if sum(max(0, more + 1 - held) for held in pins) > others:
                break
            more += 1
        return len(whole) + more

    def _is_whole(self, pipeline: Pipeline) -> bool:
        hosts = [(seat, self.hosts[seat.peer]) for seat in pipeline.route]
        is_served = all(host.works and host.is_ready and host.stage == seat.stage for seat, host in hosts)
        return is_served and self.trainers[pipeline.trainer]

    def view(self) -> View:
        known = [h for h in self.hosts.values() if h.is_alive and not self._is_lost(h)]
        view = View(
            num_stages=len(self.shape.sizes),
            experts=tuple(host.view() for host in known),
            trainers=tuple(trainer for trainer, lives in self.trainers.items() if lives),
            pipelines=tuple(self.pipelines.values()),
            moved=self._moved,
            promoting=self._promoting,
            grace=GRACE_SECONDS,
            costs=self.shape.sizes,
        )
        self._lacking = {name: self._lacking.get(name, self.now) for name in view.lacks}
        return replace(view, lacking=self._lacking)

    def _is_lost(self, host: Host) -> bool:
        return host.hung_since is not None and self.now - host.hung_since > LEASE_SECONDS

    # What is done.

    def _look(self) -> None:
        view = self.view()
        self.tally.looks += 1
        actions = plan(view, self.shape.section, self.now)
        check_wave(view, self.shape.section, self.now, actions)
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        self._changed = self.now
        match action:
            case Assign(peer, stage):
                self._moved[peer] = self.now
                host = self.hosts[peer]
                self.tally.moved += host.stage is not None
                if host.works:
                    self._take(host, stage)
            case Follow(peer, stage):
                self._moved[peer] = self.now
                host = self.hosts[peer]
                if host.works:
                    host.follows, host.is_warm = stage, False
                    self._later(host, self.shape.sizes[stage] / host.rate, "is_warm")
            case Form(name, route, trainer):
                known = self.pipelines.get(name) if name is not None else None
                self._formed += known is None
                name = known.id if known is not None else PipelineId(f"p{self._formed}")
                self.pipelines[name] = Pipeline(name, known.epoch + 1 if known is not None else 1, route, trainer)
                self.opening[name] = self.now + OPENING_SECONDS
                self.at(self.opening[name], lambda: None)  # For the count after it.
            case Dissolve(name):
                del self.pipelines[name], self.opening[name]
                self.tally.dissolved += 1

    def _take(self, host: Host, stage: StageIndex) -> None:
        is_warm = host.is_warm and host.follows == stage
        if is_warm:
            self._promoting[host.peer] = self.now
            self.tally.promoted += 1
        host.stage, host.is_ready = stage, False
        host.follows, host.is_warm = None, False
        self._later(host, PROMOTION_SECONDS if is_warm else self.shape.sizes[stage] / host.rate, "is_ready")

    def _begin(self, host: Host) -> None:
        host.is_alive = True
        host.stage = host.follows = None
        host.is_ready = host.is_warm = False
        host.order += 1
        if host.pinned is not None:
            self._take(host, host.pinned)

    def _later(self, host: Host, seconds: float, what: str) -> None:
        """That fact is true of the host after so long, unless it was told something else or is gone."""
        host.order += 1
        order = host.order

        def arrived() -> None:
            if host.order != order:
                return
            if host.hung_since is not None:
                self.at(self.now + LOOK_SECONDS, arrived)
                return
            setattr(host, what, True)
            self._changed = self.now

        self.at(self.now + seconds, arrived)

    # What is asserted.

    def _fault(self, weight: int) -> None:
        self._faults.append((self.now, weight))
        self._changed = self.now

    def _note(self) -> None:
        """What the swarm could do, and does, from now on."""
        self._oracles.append((self.now, self.oracle()))
        self._running = self.running()

    def _judge(self) -> None:
        """Never below what the oracle had all the time, but for what faults have broken since."""
        begin = self.now - self.shape.repair_seconds
        while len(self._oracles) > 1 and self._oracles[1][0] <= begin:
            self._oracles.popleft()
        while self._faults and self._faults[0][0] <= begin:
            self._faults.popleft()
        least = min(count for _, count in self._oracles) if self._oracles[0][0] <= begin else 0
        excused = sum(weight for _, weight in self._faults)
        assert self._running >= least - excused, (
            f"at {self.now:.2f}: {self._running} pipelines run, {least} could for {self.shape.repair_seconds:.1f} s, "
            f"and faults since excuse {excused}; {self.describe()}"
        )

    def describe(self) -> str:
        """Who does what, for a failed assertion."""
        hosts = [
            f"{h.peer} {'hung ' if h.hung_since is not None else ''}stage {h.stage} ready {h.is_ready} pin {h.pinned}"
            for h in self.hosts.values()
            if h.is_alive
        ]
        lines = [f"{p.id}: {[seat.peer for seat in p.route]} by {p.trainer}" for p in self.pipelines.values()]
        return "\n".join([*hosts, *lines])


def check_wave(view: View, section: PlanSection, now: float, actions: Sequence[Action]) -> None:
    """Every action is allowed in this view, and no peer is told two things."""
    told: list[PeerId] = []
    used = {seat.peer for pipeline in view.pipelines for seat in pipeline.route if view.serves(seat)}
    lines = {pipeline.id: pipeline for pipeline in view.pipelines}
    begun = len(lines)
    for action in actions:
        match action:
            case Assign(peer, stage):
                expert = view.expert(peer)
                assert expert is not None, action
                assert not expert.is_pinned, action
                assert peer not in used, action
                assert 0 <= stage < view.num_stages, action
                assert stage != expert.stage, action
                assert expert.stage is None or now - view.moved.get(peer, -1e9) >= section.cooldown, action
                told.append(peer)
            case Follow(peer, stage):
                expert = view.expert(peer)
                assert section.followers
                assert expert is not None, action
                assert expert.stage is None, action
                assert expert.follows != stage, action
                assert any(e.stage == stage and e.is_ready for e in view.experts), action
                told.append(peer)
            case Form(name, route, trainer):
                assert [seat.stage for seat in route] == list(range(view.num_stages)), action
                assert trainer in view.trainers, action
                kept = _kept(view, lines[name]) if name is not None else []
                begun += name is None
                assert name is None or (view.lacks[name] and lines[name].trainer == trainer), action
                assert all(seat in route for seat in kept), action
                new = [view.expert(seat.peer) for seat in route if seat not in kept]
                assert all(e is not None and e.is_ready and e.peer not in used for e in new), action
                assert all(view.serves(seat) for seat in route), action
                told += [seat.peer for seat in route]
            case Dissolve(name):
                is_lost = lines[name].trainer not in view.trainers
                assert is_lost or name in view.lacks or name in view.failing, f"{action} works"
    assert len(told) == len(set(told)), f"a peer is told two things: {actions}"
    assert begun <= max(section.max_pipelines, len(lines)), actions


def _kept(view: View, pipeline: Pipeline) -> list[Seat]:
    return [seat for seat in pipeline.route if view.serves(seat)]
