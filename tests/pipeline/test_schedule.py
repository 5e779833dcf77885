"""1F1B: order, bounds, and the bubble of an event simulation against the formula."""

from __future__ import annotations

import heapq
import itertools

import pytest

from distqat.errors import MessageError
from distqat.ids import MicrobatchId
from distqat.pipeline.pace import TRAINER, in_flight_bound
from distqat.pipeline.schedule import Agree, Apply, Backward, Forward, Schedule, Work


def mb(step: int, index: int) -> MicrobatchId:
    return MicrobatchId(step, index)


def simulate(num_stages: int, count: int, steps: int, forward: float = 1.0, backward: float = 2.0) -> float:
    """Share of the time in which a stage does not compute, over whole steps; a link takes no time."""
    schedules = [Schedule(num_stages, stage, 0) for stage in range(num_stages)]
    busy = [0.0] * num_stages
    idle = [True] * num_stages
    feed = [mb(step, index) for step in range(1, steps + 1) for index in range(count)]
    fed = answered = 0
    events: list[tuple[float, int, int, Work]] = []
    serial = itertools.count()
    now = 0.0

    def arrivals() -> None:
        nonlocal fed
        while fed < len(feed) and fed - answered < in_flight_bound(num_stages, TRAINER):
            schedules[0].forward_arrived(feed[fed], count)
            fed += 1

    def start(stage: int) -> None:
        work = schedules[stage].next() if idle[stage] else None
        if work is None:
            return
        took = {Forward: forward, Backward: backward}.get(type(work), 0.0)
        if isinstance(work, Forward) and stage == num_stages - 1:
            took += backward
        busy[stage] += took
        idle[stage] = False
        heapq.heappush(events, (now + took, next(serial), stage, work))

    def finish(stage: int, work: Work) -> None:
        nonlocal answered
        idle[stage] = True
        schedules[stage].done(work)
        last = stage == num_stages - 1
        if isinstance(work, Apply) and not last:
            schedules[stage + 1].commit_arrived(work.step)
        elif isinstance(work, Forward) and not last:
            schedules[stage + 1].forward_arrived(work.id, count)
        elif isinstance(work, Forward | Backward) and stage > 0:
            schedules[stage - 1].backward_arrived(work.id)
        elif isinstance(work, Forward | Backward):
            answered += 1

    arrivals()
    start(0)
    while events:
        now, _, stage, work = heapq.heappop(events)
        finish(stage, work)
        arrivals()
        for other in range(num_stages):
            start(other)
    assert all(schedule.committed == steps for schedule in schedules)
    for stage, schedule in enumerate(schedules):
        assert schedule.statistics().most_in_flight <= in_flight_bound(num_stages, stage)
    return 1.0 - busy[0] / now


@pytest.mark.parametrize("count", [4, 8, 32, 128])
def test_the_bubble_is_what_the_formula_says(count: int) -> None:
    assert simulate(4, count, 1) == pytest.approx(3 / (count + 3), abs=1e-9)
    assert simulate(4, count, 5) == pytest.approx(3 / (count + 3), abs=1e-9)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 7])
def test_any_number_of_stages(num_stages: int) -> None:
    assert simulate(num_stages, 16, 2) == pytest.approx((num_stages - 1) / (16 + num_stages - 1), abs=1e-9)


def test_fewer_microbatches_than_stages() -> None:
    assert simulate(4, 1, 3) == pytest.approx(3 / 4)


def test_backward_goes_before_forward_and_the_bound_holds() -> None:
    schedule = Schedule(2, 0, 0)
    for index in range(3):
        schedule.forward_arrived(mb(1, index), 4)
    assert schedule.next() == Forward(mb(1, 0), True)
    assert schedule.next() == Forward(mb(1, 1), True)
    assert schedule.next() is None
    schedule.backward_arrived(mb(1, 0))
    assert schedule.next() == Backward(mb(1, 0))
    schedule.done(Backward(mb(1, 0)))
    assert schedule.next() == Forward(mb(1, 2), True)


def test_the_next_step_waits_for_the_commit() -> None:
    schedule = Schedule(2, 0, 7)
    schedule.forward_arrived(mb(8, 0), 1)
    schedule.forward_arrived(mb(9, 0), 1)
    assert schedule.next() == Forward(mb(8, 0), True)
    schedule.done(Forward(mb(8, 0), True))
    assert schedule.next() is None
    schedule.backward_arrived(mb(8, 0))
    assert schedule.next() == Backward(mb(8, 0))
    schedule.done(Backward(mb(8, 0)))
    assert schedule.next() == Apply(8)
    schedule.done(Apply(8))
    assert schedule.next() == Forward(mb(9, 0), True)


def test_a_later_stage_commits_when_it_is_told() -> None:
    schedule = Schedule(2, 1, 0)
    schedule.forward_arrived(mb(1, 0), 1)
    work = schedule.next()
    assert work == Forward(mb(1, 0), True)
    with pytest.raises(MessageError, match="commit of step 1"):
        schedule.commit_arrived(1)
    schedule.done(work)
    assert schedule.next() is None
    with pytest.raises(MessageError, match="commit of step 2"):
        schedule.commit_arrived(2)
    schedule.commit_arrived(1)
    schedule.settle_arrived(1)
    assert schedule.next() == Apply(1)
    schedule.done(Apply(1))
    assert schedule.next() == Agree(1)


def test_an_evaluation_takes_the_same_credits_and_leaves_training_alone() -> None:
    schedule = Schedule(2, 0, 3)
    for index in range(3):
        schedule.forward_arrived(mb(4, index), 3, train=False)
    first = schedule.next()
    assert first == Forward(mb(4, 0), False)
    schedule.done(first)
    schedule.next()
    assert schedule.next() is None
    schedule.outcome_arrived(mb(4, 0))
    assert schedule.next() == Forward(mb(4, 2), False)
    schedule.outcome_arrived(mb(4, 1))
    schedule.outcome_arrived(mb(4, 2))
    assert schedule.next() is None
    schedule.forward_arrived(mb(4, 0), 2, train=False)
    schedule.forward_arrived(mb(4, 0), 2)
    assert schedule.statistics().waiting == 2


@pytest.mark.parametrize(
    ("step", "index", "count"),
    [(1, 1, 2), (2, 0, 2), (0, 0, 2), (1, 2, 2)],
)
def test_microbatches_out_of_order_are_refused(step: int, index: int, count: int) -> None:
    with pytest.raises(MessageError, match="microbatch"):
        Schedule(2, 0, 0).forward_arrived(mb(step, index), count)


def test_a_step_does_not_change_its_size_nor_come_twice() -> None:
    schedule = Schedule(3, 0, 0)
    schedule.forward_arrived(mb(1, 0), 2)
    with pytest.raises(MessageError, match="training microbatch"):
        schedule.forward_arrived(mb(1, 1), 3)
    with pytest.raises(MessageError, match="training microbatch"):
        schedule.forward_arrived(mb(1, 0), 2)


def test_more_microbatches_than_a_stage_may_hold_are_refused() -> None:
    schedule = Schedule(2, 0, 0, most=3)
    for index in range(3):
        schedule.forward_arrived(mb(1, index), 9)
    assert schedule.next() == Forward(mb(1, 0), True)
    with pytest.raises(MessageError, match="more than 3 microbatches"):
        schedule.forward_arrived(mb(1, 3), 9)


def test_the_bound_may_grow_and_shrink_and_the_order_stays() -> None:
    schedule = Schedule(3, 0, 0, most=8)
    for index in range(8):
        schedule.forward_arrived(mb(1, index), 20)
    schedule.allow(5)
    begun = [schedule.next() for _ in range(5)]
    assert begun == [Forward(mb(1, index), True) for index in range(5)]
    assert schedule.next() is None
    schedule.allow(2)
    for index in range(3):
        schedule.backward_arrived(mb(1, index))
        assert schedule.next() == Backward(mb(1, index))
        # Four, then three, then two are in flight: no room until one.
        schedule.done(Backward(mb(1, index)))
        assert schedule.next() is None
    schedule.backward_arrived(mb(1, 3))
    assert schedule.next() == Backward(mb(1, 3))
    schedule.done(Backward(mb(1, 3)))
    assert schedule.next() == Forward(mb(1, 5), True)
    schedule.allow(99)
    assert schedule.next() == Forward(mb(1, 6), True)
    statistics = schedule.statistics()
    assert (statistics.bound, statistics.in_flight, statistics.most_in_flight) == (8, 3, 5)


def test_a_stage_that_may_hold_less_than_the_schedule_needs_works_slower() -> None:
    schedule = Schedule(4, 0, 0, most=1)
    schedule.forward_arrived(mb(1, 0), 2)
    assert schedule.next() == Forward(mb(1, 0), True)
    schedule.done(Forward(mb(1, 0), True))
    schedule.backward_arrived(mb(1, 0))
    assert schedule.next() == Backward(mb(1, 0))
    schedule.done(Backward(mb(1, 0)))
    schedule.forward_arrived(mb(1, 1), 2)
    assert schedule.next() == Forward(mb(1, 1), True)


def test_answers_that_nobody_waits_for_are_refused() -> None:
    schedule = Schedule(2, 0, 0)
    schedule.forward_arrived(mb(1, 0), 2)
    with pytest.raises(MessageError, match="gradient"):
        schedule.backward_arrived(mb(1, 0))
    schedule.next()
    with pytest.raises(MessageError, match="outcome"):
        schedule.outcome_arrived(mb(1, 0))
    schedule.backward_arrived(mb(1, 0))
    with pytest.raises(MessageError, match="gradient"):
        schedule.backward_arrived(mb(1, 0))


def test_it_says_how_things_stand() -> None:
    schedule = Schedule(2, 0, 4)
    schedule.forward_arrived(mb(5, 0), 2)
    assert repr(schedule) == "<Schedule step 4: 1 waiting, 0/2 in flight>"
    schedule.drop_forwards()
    assert schedule.statistics().waiting == 0
