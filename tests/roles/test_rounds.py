"""Rounds beside steps: when they begin, when steps wait, what the stage holds then, and what its samples count."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
import torch

from distqat.averaging.averager import Outcome
from distqat.averaging.outer import OuterState, Part
from distqat.errors import StateError
from distqat.ids import PeerId, StepRef
from distqat.sections import SyncSection
from tests.roles.circle import Circle, Numbers, Sibling, working
from tests.support import run_virtual

PLAIN = {"warmup_steps": 0, "outer_learning_rate": 1.0, "outer_momentum": 0.0, "codec": "none"}
"""A round then comes to the mean of the local values."""


def sync(**changes: Any) -> SyncSection:
    return SyncSection.model_validate({**PLAIN, **changes})


def pair(setting: SyncSection, fragments: int = 1, seconds: float = 0.01) -> tuple[Sibling, Sibling]:
    circle = Circle(setting, seconds)
    return Sibling(circle, "a", Numbers(fragments)), Sibling(circle, "b", Numbers(fragments))


def lone(setting: SyncSection, fragments: int = 1, seconds: float = 0.01) -> Sibling:
    return Sibling(Circle(setting, seconds), "a", Numbers(fragments))


def drive(scenario: Coroutine[Any, Any, None]) -> None:
    run_virtual(scenario, timeout=1000.0)


async def both(*works: Coroutine[Any, Any, Any]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)


async def steps(number: int, *siblings: Sibling, by: float = 1.0) -> None:
    """So many steps, each of which moves all numbers of all siblings."""
    for _ in range(number):
        await both(*(sibling.step(by) for sibling in siblings))


def now() -> float:
    return asyncio.get_running_loop().time()


def values(sibling: Sibling) -> list[float]:
    """The first number of every fragment."""
    return [float(row[0]) for row in sibling.stage.values]


def test_a_blocking_round_holds_the_steps_and_counts_all_samples() -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=2), seconds=5.0)
        async with working(a, b):
            for _ in range(2):
                await both(a.step(1.0), b.step(3.0, samples=24))
            assert now() == pytest.approx(2 + 5)
            # 2 and 6 with weights 1 : 3.
            assert values(a) == values(b) == [5.0]
            assert not a.rounds.has_progress
            await both(a.step(1.0, 7), b.step(3.0, 7))
            assert now() == pytest.approx(8)
        assert [given[2] for given in a.averager.given] == [16]
        assert a.rounds.handover.samples == {0: 7}

    drive(scenario())


@pytest.mark.parametrize(("keep", "left"), [(0.0, 0), (0.5, 8)])
def test_steps_go_on_beside_a_round_and_it_is_merged_when_they_are_done(keep: float, left: int) -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=4, overlap=2, merge=keep), seconds=0.5)

        async def go(number: int) -> None:
            for _ in range(number):
                await both(a.step(1.0), b.step(0.0))

        async with working(a, b):
            await go(4)
            assert now() == 4.0
            assert a.rounds.is_beside
            await go(1)
            # It has come, and waits for its step.
            assert a.committed.round == 1
            assert values(a) == [5.0]
            await go(1)
            assert now() == 6.0
            assert a.committed.anchor[0] == 2.0
            # keep * 6 + (1 - keep) * 2.
            assert values(a) == [keep * 6 + (1 - keep) * 2]
            # Two steps of 8 samples were taken beside the round: their part that is kept counts on.
            assert a.rounds.handover.samples == {0: left}
            await go(2)
            assert a.rounds.is_beside
        assert [given[2] for given in a.averager.given] == [32, left + 16]
        assert a.averager.given[1][1][0] == values(a)[0]

    drive(scenario())


def test_steps_wait_for_a_round_that_is_late() -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=2, overlap=1), seconds=7.0)
        async with working(a, b):
            await steps(3, a, b)
            assert now() == pytest.approx(2 + 7)
            assert values(a) == [2.0]
            assert a.rounds.gate.is_set()

    drive(scenario())


def test_fragments_take_turns_and_their_samples_are_counted_apart() -> None:
    async def scenario() -> None:
        a = lone(sync(inner_steps=4, fragments=2, overlap=1), fragments=2)
        async with working(a):
            await steps(7, a)
        # Rounds begin after steps 2, 4 and 6 and are merged after 3, 5 and 7: what fragment 0 learned in step 3 is
        # dropped, and so is what fragment 1 learned in step 5.
        assert [(given[0], given[1][0], given[2]) for given in a.averager.given] == [
            ((0,), 2.0, 16),
            ((1,), 4.0, 32),
            ((0,), 5.0, 24),
        ]
        assert values(a) == [5.0, 6.0]
        assert a.rounds.handover.samples == {0: 0, 1: 16}

    drive(scenario())


@pytest.mark.parametrize("eager", [False, True])
def test_a_round_that_fails_leaves_everything_and_its_samples_count_on(eager: bool) -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=4, overlap=2, eager=eager))
        a.averager.circle.faults = ["a sibling was lost"]
        async with working(a, b):
            await steps(6, a, b)
            assert values(a) == [6.0]
            assert a.rounds.handover.samples == {0: 48}
            await steps(2, a, b)
        assert a.averager.given[-1] == ((0,), [8.0, 8.0, 8.0], 64)
        failed = [metric.labels["reason"] for metric in a.telemetry.metrics if metric.kind == "failed round"]
        assert failed == ["a sibling was lost"]

    drive(scenario())


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_caller_that_is_cut_off_takes_no_round_along(overlap: int) -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=2, overlap=overlap), seconds=3.0)
        async with working(a, b):
            await steps(1 + overlap, a, b)
            cut_off = asyncio.ensure_future(a.step(1.0))
            await asyncio.sleep(1.5)
            assert not a.rounds.gate.is_set() or overlap
            cut_off.cancel()
            await asyncio.wait([cut_off])
            await b.step(1.0)
            await a.rounds.opened()
            assert values(a) == values(b) == [2.0]
            assert a.committed.digest == b.committed.digest
            # What is learned next begins at what was agreed, once.
            assert a.rounds.handover.samples == {0: 0}

    drive(scenario())


def test_an_idle_sibling_takes_over_what_comes() -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=2, overlap=1), seconds=0.5)
        async with working(a, b):
            b.is_idle = True

            async def company() -> None:
                await b.averager.wait_invited()
                await b.rounds.attend()

            waiting = asyncio.ensure_future(company())
            await steps(3, a)
            await waiting
            # It kept nothing of its own beside the round: it holds what was committed, whole.
            assert values(b) == [2.0]
            assert b.averager.given == [((0,), [0.0, 0.0, 0.0], 0)]
            assert b.rounds.gate.is_set()
            assert not b.rounds.is_beside

    drive(scenario())


def test_a_sibling_that_waits_is_not_kept_waiting_for_the_steps_that_are_left() -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=10, overlap=9), seconds=0.1)
        async with working(a, b):
            await steps(10, a, b)
            # One is much faster now, and comes to the next round first.
            for _ in range(10):
                await a.step(1.0, seconds=0.05)
            assert a.averager.me in a.averager.circle.joined
            await b.step(1.0)
            assert b.averager.me in a.averager.circle.joined or b.committed.round == 2
            await asyncio.sleep(0.2)
            assert a.committed.round == b.committed.round == 2

    drive(scenario())


@pytest.mark.parametrize("eager", [False, True])
def test_settling_ends_the_round_under_way_and_commits_all_that_is_left(eager: bool) -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=8, fragments=4, overlap=1, eager=eager), fragments=4, seconds=0.5)
        async with working(a, b):
            for step in range(7):
                await both(a.step(1.0), b.step(2.0 + step))
            await both(a.rounds.settle(), b.rounds.settle())
            assert values(a) == values(b) == [float(part.anchor[0]) for part in a.committed.parts]
            assert a.committed.digest == b.committed.digest
            assert not a.rounds.has_progress
            # Of the fragment whose round was under way all that came beside it is dropped, unless rounds are eager.
            assert a.committed.round == 3 + (4 if eager else 3)
            assert [given[0] for given in a.averager.given][-4:] == [(3,), (0,), (1,), (2,)]

    drive(scenario())


def test_settling_without_anything_learned_ends_at_once() -> None:
    async def scenario() -> None:
        a = lone(sync(inner_steps=4, fragments=2), fragments=2)
        async with working(a):
            await a.rounds.settle()
            assert len(a.averager.given) == 1
            assert a.committed.round == 0
            # In the warm-up one round has all fragments.
        a = lone(sync(inner_steps=4, fragments=2, warmup_steps=9), fragments=2)
        async with working(a):
            await a.step(1.0)
            a.stage.learn(1.0)
            a.rounds.count(8)
            await a.rounds.settle()
            assert [given[0] for given in a.averager.given] == [(0, 1), (0, 1)]

    drive(scenario())


def test_settling_ends_when_what_is_done_at_rest_is_done() -> None:
    async def scenario() -> None:
        a = lone(sync(inner_steps=4))
        done: list[bool] = []

        async def copy(is_settled: bool) -> None:
            await asyncio.sleep(5.0)
            done.append(is_settled)

        a.rounds.on_rest = copy
        async with working(a):
            await a.step(1.0)
            await a.rounds.settle()
            assert done == [True]

            async def again() -> None:
                await asyncio.sleep(2.0)
                await a.rounds.settle()

            # Asked for while the first is at rest: it is done once more, and both wait for that.
            await both(a.rounds.settle(), again())
            assert done == [True, True, True]

    drive(scenario())


def later(state: OuterState, by: dict[int, float], rounds: int) -> OuterState:
    """What others have committed meanwhile."""
    parts = [Part.of(part.anchor + by.get(index, 0.0), part.momentum) for index, part in enumerate(state.parts)]
    kept = [part if index in by else state.parts[index] for index, part in enumerate(parts)]
    return OuterState.of(kept, state.round + rounds)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("is_replayed", [True, False])
def test_a_sibling_that_missed_rounds(is_replayed: bool, eager: bool) -> None:
    """Replayed rounds move its local values with all that they have learned; a snapshot replaces them."""

    async def scenario() -> None:
        a = lone(sync(inner_steps=4, fragments=2, overlap=1, eager=eager), fragments=2)

        async def synchronise(local: torch.Tensor, samples: int, origins: tuple[StepRef, ...] = ()) -> Outcome:
            before = a.committed
            how = a.averager.phase
            assert how is not None
            a.averager.outer = later(before, {1: 10.0}, 3)
            await asyncio.sleep(0.1)
            return Outcome(before, a.averager.outer, how, None, is_replayed)

        a.averager.synchronise = synchronise  # type: ignore[method-assign]
        async with working(a):
            await steps(3, a)
        if is_replayed:
            assert a.stage.values.tolist() == [[3.0, 3.0, 3.0], [13.0, 13.0, 10.0]]
            assert a.rounds.handover.samples == {0: 24, 1: 24}
        else:
            assert a.stage.values.tolist() == [[0.0, 0.0, 0.0], [10.0, 10.0, 10.0]]
            assert a.rounds.handover.samples == {0: 0, 1: 0}
        assert a.rounds.handover.replayed == (3 if is_replayed else 0)
        caught = [metric.values for metric in a.telemetry.metrics if metric.kind == "caught up"]
        assert caught == [{"rounds": 3.0, "replayed": float(is_replayed)}]

    drive(scenario())


def test_eager_steps_begin_where_the_own_part_leads() -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=2, overlap=2, eager=True, outer_learning_rate=0.5))
        async with working(a, b):
            for _ in range(2):
                await both(a.step(1.0), b.step(3.0, 24))
            # Its share is not known yet: a half of two. 0 - 0.5 * (0.5 * -2) = 0.5; statistics stay local.
            assert a.stage.values.tolist() == [[0.5, 0.5, 2.0]]
            await both(a.step(1.0), b.step(3.0, 24))
            # -(1/4 * 2 + 3/4 * 6) * 0.5 = 2.5 is committed, and not merged before the last step.
            assert a.committed.anchor.tolist() == [2.5, 2.5, 5.0]
            assert a.stage.values.tolist() == [[1.5, 1.5, 3.0]]
            await both(a.step(1.0), b.step(3.0, 24))
            # Merged: 2.5 + 2 = 4.5. The next one has begun: 2.5 + 0.5 * (1/4 * 2) = 2.75 with a share of a quarter.
            assert a.averager.given[1] == ((0,), [4.5, 4.5, 5.0], 16)
            assert a.stage.values.tolist() == [[2.75, 2.75, 5.0]]

    drive(scenario())


def test_a_fault_that_nobody_expects_lets_the_steps_go_on() -> None:
    async def scenario() -> None:
        a = lone(sync(inner_steps=1))

        async def synchronise(local: torch.Tensor, samples: int, origins: tuple[StepRef, ...] = ()) -> Outcome:
            raise StateError("a disk is full")

        a.averager.synchronise = synchronise  # type: ignore[method-assign]
        async with working(a):
            await steps(3, a)
        assert a.rounds.handover.samples == {0: 24}

    drive(scenario())


def test_what_a_round_refused_is_told() -> None:
    async def scenario() -> None:
        a, b = pair(sync(inner_steps=1))
        async with working(a, b):
            await steps(1, a, b)
        receipt = replace(
            a.averager.receipts[0], refused=((PeerId("evil"), "holds NaN"),), clipped=(PeerId("b"),), bits=2.5
        )
        a.rounds._journal.committed(receipt)
        a.rounds._journal.refused(PeerId("evil"), "holds NaN")
        lines = a.telemetry.metrics
        refused = [metric for metric in lines if metric.kind == "refused contribution"]
        assert [(line.labels["peer"], line.labels["reason"]) for line in refused] == [("evil", "holds NaN")]
        last = [metric for metric in lines if metric.kind == "round"][-1]
        assert (last.values["bits"], last.values["clipped"], last.values["refused"]) == (2.5, 1, 1)

    drive(scenario())


def test_another_stage_begins_its_rounds_when_the_first_of_its_pipeline_says_so() -> None:
    async def scenario() -> None:
        circle = Circle(sync(inner_steps=4))
        siblings = [Sibling(circle, name, Numbers()) for name in ("a", "b")]
        for sibling in siblings:
            sibling.rounds._is_first = False

        async def go(sibling: Sibling, orders: str) -> None:
            for order in orders:
                await sibling.rounds.opened()
                await asyncio.sleep(1.0)
                sibling.stage.learn(1.0)
                sibling.rounds.orders_round(order == "x")
                sibling.rounds.count(8)
                await sibling.rounds.boundary()

        async with working(*siblings):
            # Not after four steps, and not when the other waits; but at the step that was ordered.
            await both(go(siblings[0], "-----x-"), go(siblings[1], "------x-"))
        assert [given[2] for given in siblings[0].averager.given] == [6 * 8]
        assert [given[2] for given in siblings[1].averager.given] == [7 * 8]

    drive(scenario())


@pytest.mark.parametrize("invites", [True, False])
def test_another_stage_does_not_wait_for_ever_for_an_order(invites: bool) -> None:
    async def scenario() -> None:
        circle = Circle(sync(inner_steps=4))
        a, b = (Sibling(circle, name, Numbers()) for name in ("a", "b"))
        a.rounds._is_first = b.rounds._is_first = False

        async def step(sibling: Sibling, is_ordered: bool = False) -> None:
            await asyncio.sleep(1.0)
            sibling.stage.learn(1.0)
            sibling.rounds.orders_round(is_ordered)
            sibling.rounds.count(8)
            await sibling.rounds.boundary()

        async def late(number: int) -> None:
            await asyncio.sleep(1.0)
            for _ in range(number):
                await step(b)

        async with working(a, b):
            if invites:
                await both(step(a, True), late(3))
            else:
                await both(*(late(8), follow(a, 8, step)))
        # Three steps after it was invited; or when twice the steps of the schedule are done.
        assert [given[2] for given in b.averager.given] == [3 * 8 if invites else 8 * 8]

    async def follow(sibling: Sibling, number: int, step: Any) -> None:
        for _ in range(number):
            await step(sibling)

    drive(scenario())


def test_a_round_that_takes_longer_than_the_steps_beside_it_orders_no_other() -> None:
    """Until it has come, who is invited is invited to it."""

    async def scenario() -> None:
        a, b = pair(sync(inner_steps=8, overlap=2), seconds=5.0)
        async with working(a, b):
            await steps(8 + 3 * 8 + 2, a, b)
        # With what the two steps beside it have learned dropped, every contribution is of six more; the first of eight.
        assert [given[2] for given in a.averager.given] == [64, 48, 48, 48]
        assert a.committed.round == 4

    drive(scenario())


def test_another_stage_does_not_order_a_round_beside_the_one_it_was_invited_to() -> None:
    async def scenario() -> None:
        circle = Circle(sync(inner_steps=8, overlap=5), seconds=20.0)
        a, b = (Sibling(circle, name, Numbers()) for name in ("a", "b"))
        a.rounds._is_first = b.rounds._is_first = False

        async def go(sibling: Sibling) -> None:
            for number in range(1, 8 + 8 + 5 + 1):
                await sibling.rounds.opened()
                await asyncio.sleep(1.0)
                sibling.stage.learn(1.0)
                sibling.rounds.orders_round(number % 8 == 0)
                sibling.rounds.count(8)
                await sibling.rounds.boundary()

        async with working(a, b):
            await both(go(a), go(b))
        assert [given[2] for given in a.averager.given] == [64, 24]
        assert a.committed.round == 2

    drive(scenario())
