"""The plan against a greedy oracle, under churn: how long a repair takes, how much is moved, who is kept warm."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from random import Random
from types import FrameType

import pytest

from distqat.ids import PeerId
from distqat.roles.plan import View, plan
from distqat.roles.plan.follow import CLEAR_GAIN, FOLLOWERS_PER_SEAT
from distqat.sections import PlanSection
from tests.sim.churn import churn, draw_shape, fault
from tests.sim.planning import LOOK_SECONDS, OPENING_SECONDS, PROMOTION_SECONDS, Planned, Shape

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

CHURN_SECONDS = 60.0


def settled(shape: Shape) -> Planned:
    """A swarm that has done what can be done with its hosts."""
    swarm = Planned(shape)
    swarm.run(2 * shape.repair_seconds)
    return swarm


def hold_at_rest(swarm: Planned) -> None:
    """Nothing is left to do: all pipelines run that could, and warm spares are spread."""
    assert swarm.running() == swarm.oracle(), swarm.describe()
    view = swarm.view()
    assert not plan(view, swarm.shape.section, swarm.now)
    if not view.pipelines:
        return
    following = [sum(e.follows == stage for e in view.spares()) for stage in range(view.num_stages)]
    could_step_in = [len(view.free_at(stage)) + number for stage, number in enumerate(following)]
    most = FOLLOWERS_PER_SEAT * len(view.pipelines)
    open_to_more = [count for count, number in zip(could_step_in, following, strict=True) if number < most]
    for count, number in zip(could_step_in, following, strict=True):
        assert not number or not open_to_more or count - min(open_to_more) < CLEAR_GAIN, (following, could_step_in)
    assert not open_to_more or all(e.follows is not None for e in view.spares() if not e.is_pinned), following


def live_through_churn(seed: int, most_hosts: int) -> Planned:
    """At every look there are as many whole pipelines as the oracle has had for a repair, but for faults since then."""
    draw = Random(seed)
    swarm = settled(draw_shape(draw, draw.randint(3, most_hosts)))
    churn(swarm, draw, CHURN_SECONDS)
    swarm.run(swarm.now + 2 * CHURN_SECONDS)
    for host in list(swarm.hosts):
        if draw.random() < 0.5:
            swarm.back(host)
    for trainer in swarm.trainers:
        swarm.trainer_back(trainer)
    swarm.run(swarm.now + 2 * swarm.shape.repair_seconds)
    hold_at_rest(swarm)
    tally, num_stages = swarm.tally, len(swarm.shape.sizes)
    assert tally.dissolved <= tally.losses + tally.trainer_losses
    assert tally.moved <= tally.losses + num_stages * (tally.trainer_losses + tally.joins), tally
    return swarm


def live_through_faults(seed: int, most_hosts: int) -> Planned:
    """After each of several faults all is whole again within the time of a repair, with few moves."""
    draw = Random(seed)
    swarm = settled(draw_shape(draw, draw.randint(3, most_hosts)))
    for _ in range(4):
        if sum(host.works for host in swarm.hosts.values()) < 2:
            break
        before = replace(swarm.tally)
        fault(swarm, draw)
        swarm.run(swarm.now + swarm.shape.repair_seconds + 10.0)
        hold_at_rest(swarm)
        lost = swarm.tally.losses - before.losses
        moved = swarm.tally.moved - before.moved
        dissolved = swarm.tally.dissolved - before.dissolved
        ended = swarm.tally.trainer_losses - before.trainer_losses
        # A lost expert ends one pipeline at most, and one survivor is moved; the experts of a lost trainer regroup.
        assert dissolved <= lost + ended
        assert moved <= lost + len(swarm.shape.sizes) * ended, swarm.tally
    return swarm


@pytest.mark.parametrize("seed", range(30))
def test_churn_costs_no_pipeline_for_longer_than_a_repair(seed: int) -> None:
    live_through_churn(seed, 24)


@pytest.mark.parametrize("seed", range(30))
def test_a_fault_is_repaired_in_time_and_with_few_moves(seed: int) -> None:
    live_through_faults(seed, 40)


def test_five_hundred_hosts_lose_a_third() -> None:
    shape = Shape(sizes=(1e7, 2e7, 1e7, 4e7), rates=(2e7,) * 500, section=PlanSection(max_pipelines=100))
    swarm, draw = settled(shape), Random(1)
    assert swarm.running() == 100
    for peer in draw.sample(list(swarm.hosts), 150):
        swarm.at(swarm.now, partial(draw.choice((swarm.crash, swarm.hang)), peer))
    swarm.run(swarm.now + shape.repair_seconds + 10.0)
    hold_at_rest(swarm)
    assert swarm.running() == 350 // 4
    assert swarm.tally.losses == 150
    assert swarm.tally.promoted > 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_soak_of_churn(first: int) -> None:
    for seed in range(first, first + 100):
        live_through_churn(seed, 500 if seed % 100 == 0 else 50)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_soak_of_faults(first: int) -> None:
    for seed in range(first, first + 100):
        live_through_faults(seed, 500 if seed % 100 == 0 else 50)


def test_a_warm_spare_is_there_in_a_moment_and_a_cold_one_when_the_state_is() -> None:
    for followers in (True, False):
        shape = Shape((1e8, 1e8), (1e7,) * 3, section=PlanSection(followers=followers, max_pipelines=1))
        swarm = settled(shape)
        (line,) = swarm.pipelines.values()
        # One spare has one stage; the other one is lost next.
        warm = [h.follows for h in swarm.hosts.values() if h.is_warm]
        lost = line.route[warm[0] if warm[0] is not None else 0] if followers else line.route[0]
        swarm.at(swarm.now, partial(swarm.crash, lost.peer))
        begun = swarm.now
        swarm.run(begun + 3 * LOOK_SECONDS + PROMOTION_SECONDS + OPENING_SECONDS)
        assert swarm.running() == followers
        assert swarm.tally.promoted == followers
        swarm.run(begun + shape.repair_seconds)
        assert swarm.running() == 1


def test_what_a_plan_costs_grows_with_the_peers_and_no_faster() -> None:
    few, many = (calls_of_a_plan(number) for number in (125, 500))
    assert many < 6 * few


def calls_of_a_plan(num_hosts: int) -> int:
    """Functions called for a plan that forms, mends, assigns and follows, among so many hosts."""
    most = PlanSection(max_pipelines=num_hosts // 16)
    swarm = settled(Shape((1e6,) * 8, (1e8,) * num_hosts, section=most))
    for peer in list(swarm.hosts)[: num_hosts // 4]:
        swarm.crash(PeerId(peer))
    views = [swarm.view(), replace(swarm.view(), pipelines=()), empty(swarm.view())]
    count = 0

    def called(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        for view in views:
            plan(view, most, swarm.now)
    finally:
        sys.setprofile(None)
    return count


def empty(view: View) -> View:
    """The same hosts before anybody has a stage."""
    experts = tuple(replace(e, stage=None, is_ready=False, follows=None) for e in view.experts)
    return replace(view, experts=experts, pipelines=())
