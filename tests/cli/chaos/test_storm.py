"""The course of a storm, over a swarm that is made up, in virtual time: what comes when, and what ends it early."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from distqat.cli.chaos.crew import HEAD, Crew
from distqat.cli.chaos.schedule import Kind, schedule
from distqat.cli.chaos.storm import Course, Storm, last_evaluation, open_storm
from distqat.cli.chaos.watch import Watch
from distqat.cli.nursery.process import Executing
from distqat.errors import RemoteError
from distqat.ids import Endpoint, PeerId, Seat, StageIndex
from distqat.roles.messages import MetricLine
from distqat.roles.status import ExpertStatus, PeerStatus, PipelineStatus, Receipt, RoleStatus, RunStatus
from distqat.rpc.local import Network
from tests.support import run_virtual

STEP_SECONDS = 0.1
ALL = {Kind.KILL: 3, Kind.STOP: 2, Kind.CUT: 2, Kind.KILL_HEAD: 1}


class MadeUp(Crew):
    """Two pipelines of two stages and a spare. Whoever is down is replaced after a while if there is somebody."""

    def __init__(self, mend_seconds: float = 1.0) -> None:
        super().__init__(Path("nowhere"), [], Executing(), Network().transport("asks"), None)
        self.mend_seconds = mend_seconds
        self.actions: list[tuple[float, str, str]] = []  # When, what, to whom.
        self.ends_at = math.inf  # When a daemon ends by itself.
        self.comes_back = True
        self.takes_role = True
        self.warm_seconds = 0.0  # After which a daemon that is back holds a stage; inf: never without a seat.
        self.is_resilient = True  # Otherwise nothing is trained any more once anybody was hurt.
        self.routes = {"p": ["a", "b"], "q": ["c", "d"]}
        self.epochs = dict.fromkeys(self.routes, 1)
        self.steps = dict.fromkeys(self.routes, 0.0)
        self.down_since: dict[str, float] = {}
        self.up_since: dict[str, float] = {}
        self.looked = 0.0
        self.places = {name: Endpoint(name, 1) for name in self.experts()}
        self.names = {endpoint: name for name, endpoint in self.places.items()}

    @property
    def down(self) -> set[str]:
        return set(self.down_since)

    def experts(self) -> list[str]:
        return ["a", "b", "c", "d", "spare"]

    def check(self) -> None:
        if self.now >= self.ends_at:
            raise RemoteError("daemon a ended by itself with exit code 1")

    async def kill(self, name: str) -> None:
        self.fall(name, "kill")

    async def revive(self, name: str) -> None:
        if not self.comes_back:
            raise RemoteError(f"daemon {name} does not listen")
        await asyncio.sleep(2.0)
        self.rise(name, "revive")

    def stop(self, name: str) -> None:
        self.fall(name, "stop")

    def resume(self, name: str) -> None:
        self.rise(name, "resume")

    def cut(self, name: str, is_silent: bool) -> None:
        self.fall(name, "silent cut" if is_silent else "cut")

    async def heal(self, name: str) -> None:
        self.rise(name, "heal")

    async def status(self, name: str, seconds: float) -> PeerStatus | None:
        self.train()
        if name in self.down:
            return None
        return self.head() if name == HEAD else self.expert(name)

    async def metrics(self, after: int, seconds: float) -> Sequence[MetricLine]:
        serial = int(self.now)
        values = {"accuracy": self.now / 1000, "loss": 1.0}
        return [MetricLine(serial, "evaluation", self.now, {"pipeline": "p"}, values)] if serial > after else []

    # How the swarm goes on.

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def fall(self, name: str, what: str) -> None:
        self.train()
        self.actions.append((self.now, what, name))
        self.down_since[name] = self.now

    def rise(self, name: str, what: str) -> None:
        self.train()
        self.actions.append((self.now, what, name))
        self.up_since[name] = self.now
        del self.down_since[name]

    def train(self) -> None:
        passed, self.looked = self.now - self.looked, self.now
        for name, route in self.routes.items():
            broken = [place for place, daemon in enumerate(route) if daemon in self.down]
            if not broken and HEAD not in self.down and (self.is_resilient or not self.actions):
                self.steps[name] += passed / STEP_SECONDS
            for place in broken:
                self.mend(name, place)

    def mend(self, name: str, place: int) -> None:
        used = {daemon for route in self.routes.values() for daemon in route}
        free = [daemon for daemon in self.experts() if daemon not in used | self.down]
        if free and self.now - self.down_since[self.routes[name][place]] >= self.mend_seconds:
            self.routes[name][place] = free[0]
            self.epochs[name] += 1

    def head(self) -> PeerStatus:
        lines = tuple(self.line(name) for name in self.routes)
        committed = sum(line.step for line in lines) * 32
        run = RunStatus(committed=committed, budget=1 << 30)
        return PeerStatus(HEAD, roles=(RoleStatus("client", run=run), RoleStatus("trainer", pipelines=lines)))

    def line(self, name: str) -> PipelineStatus:
        seats = [Seat(PeerId(d), self.places[d], StageIndex(n)) for n, d in enumerate(self.routes[name])]
        phase = "broken" if set(self.routes[name]) & self.down else "training"
        return PipelineStatus(name, self.epochs[name], tuple(seats), int(self.steps[name]), phase=phase)

    def expert(self, name: str) -> PeerStatus:
        stage = next((route.index(name) for route in self.routes.values() if name in route), None)
        number = int(self.now)
        facts = ExpertStatus(
            seated=stage is not None,
            stage=stage or 0,
            round=number,
            digest=f"{stage} after {number}",
            ready=stage is not None,
            warm=stage is None and self.now >= self.up_since.get(name, -math.inf) + self.warm_seconds,
        )
        has_role = self.takes_role or not any(name == victim for _, _, victim in self.actions)
        return PeerStatus(name, roles=(RoleStatus("expert", "joining", expert=facts if has_role else None),))


def rage(crew: MadeUp, seconds: float = 120.0, patience: float = 60.0) -> tuple[Storm, Watch, str]:
    """A whole storm; with what it said."""
    faults = schedule(ALL, seconds, 7, 6, 3.0)
    course = Course(faults, seconds, measured=10.0, first_rounds=5, patience=patience)
    watch, said = Watch(pipelines=2, needed=4), io.StringIO()
    watch.staffed(len(crew.experts()))

    async def scenario() -> Storm:
        async with open_storm(crew, watch, course, Console(file=said, width=120)) as storm:
            await storm.rage()
        return storm

    return run_virtual(scenario(), timeout=2000.0, debug=False), watch, said.getvalue()


def test_all_faults_come_are_healed_and_recover() -> None:
    crew = MadeUp()
    storm, watch, said = rage(crew)
    assert not storm.broke_off, said
    whats = [what for _, what, _ in crew.actions]
    assert {what: whats.count(what) for what in sorted(set(whats))} == {
        "cut": 1, "heal": 2, "kill": 4, "resume": 2, "revive": 4, "silent cut": 1, "stop": 2,
    }  # fmt: skip
    assert [wound.fault.number for wound in watch.wounds] == list(range(8))
    assert all(wound.is_over for wound in watch.wounds)
    assert not crew.down
    seated = [wound.recovery for wound in watch.wounds if wound.stage is not None]
    assert all(1.0 <= seconds < 1.5 for seconds in seated)


def test_rates_are_those_of_the_swarm() -> None:
    storm, watch, _ = rage(MadeUp())
    spans, whole = storm.spans, 2 * 32 / STEP_SECONDS
    assert spans.before.rate == pytest.approx(whole, rel=0.05)
    assert spans.after.rate == pytest.approx(whole, rel=0.05)
    assert spans.before.seconds == pytest.approx(10.0, abs=0.2)
    assert spans.during.seconds >= 120.0
    assert spans.during.rate < spans.before.rate
    assert watch.digests.compared > 100
    assert not watch.digests.unequal
    assert last_evaluation(storm.evaluations)[0] == "accuracy"


class Ahead(MadeUp):
    """Everybody has committed a round alone; once it is killed, the others commit another one in its place."""

    def expert(self, name: str) -> PeerStatus:
        status = super().expert(name)
        facts, killed = status.roles[0].expert, {victim for _, what, victim in self.actions if what == "kill"}
        assert facts is not None
        told = tuple(
            Receipt(round=number, digest="its own" if daemon == name else "another", contributors=(name,))
            for number, daemon in enumerate(self.experts())
            if (daemon == name) != (daemon in killed)
        )
        facts = replace(facts, round=facts.round + len(self.experts()) + 1, receipts=told)
        return replace(status, roles=(replace(status.roles[0], expert=facts),))


def test_what_only_a_killed_daemon_told_of_is_not_held_against_the_others() -> None:
    _, watch, _ = rage(Ahead())
    assert not watch.digests.unequal
    assert watch.digests.died > 0


def test_nothing_is_measured_before_the_first_rounds_are_over() -> None:
    _, _, said = rage(MadeUp())
    began = float(said.split(" s ")[0])
    assert began >= 5 + 10


def test_a_fault_waits_until_the_one_before_has_recovered() -> None:
    # Mending takes longer than the gap between two faults.
    crew = MadeUp(mend_seconds=4.0)
    _, watch, _ = rage(crew, seconds=8 * 5.5)
    assert all(before.recovered <= after.at for before, after in zip(watch.wounds, watch.wounds[1:], strict=False))
    assert len(watch.wounds) == 8


@pytest.mark.parametrize(("warm_seconds", "at_least"), [(6.0, 6.0), (math.inf, 15.0)])
def test_a_fault_waits_until_the_victim_before_holds_a_stage_again_but_not_for_ever(
    warm_seconds: float, at_least: float
) -> None:
    crew = MadeUp()
    crew.warm_seconds = warm_seconds
    storm, watch, said = rage(crew, seconds=8 * 5.5)
    assert not storm.broke_off, said
    returns = {(name, when) for when, what, name in crew.actions if what in ("revive", "resume", "heal")}
    for before, after in zip(watch.wounds, watch.wounds[1:], strict=False):
        if before.victim != HEAD:
            back = min(when for name, when in returns if name == before.victim and when > before.at)
            assert at_least <= before.healed - back < at_least + 0.5
            assert after.at >= before.healed
    assert len(watch.wounds) == 8


def test_a_daemon_that_ends_by_itself_ends_the_run() -> None:
    crew = MadeUp()
    crew.ends_at = 60.0
    storm, watch, _ = rage(crew)
    assert "ended by itself" in storm.broke_off
    assert 0 < len(watch.wounds) < 8
    assert storm.spans.during.samples > 0


def test_a_fault_that_does_not_recover_ends_the_run() -> None:
    crew = MadeUp()
    crew.is_resilient = False
    storm, watch, _ = rage(crew)
    assert storm.broke_off == "waited 60 s in vain for fault 0 to recover"
    assert math.isnan(watch.wounds[0].recovered)


def test_a_daemon_that_does_not_come_back_ends_the_run() -> None:
    crew = MadeUp()
    crew.comes_back = False
    storm, _, _ = rage(crew)
    assert "does not listen" in storm.broke_off


def test_a_daemon_that_does_not_take_its_role_again_ends_the_run() -> None:
    crew = MadeUp()
    crew.takes_role = False
    storm, watch, _ = rage(crew)
    assert "has not taken the role" in storm.broke_off or "to be back before fault 1" in storm.broke_off
    assert len(watch.wounds) == 1
