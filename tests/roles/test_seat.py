"""A seat between its routes and its rounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distqat.config import load
from distqat.errors import DeadlineError, RefusedError, StaleError
from distqat.ids import PipelineId, StageIndex, StepRef
from distqat.model.local import LocalState
from distqat.roles.journal import Journal
from distqat.roles.seat import IDLE_SECONDS, Seat
from distqat.sections import SyncSection
from distqat.telemetry import Reason, Telemetry, log
from tests.roles.circle import Averaging, Circle, Inline, Numbers, Sibling
from tests.support import run_virtual, until

SYNC = SyncSection(warmup_steps=0, inner_steps=3, outer_learning_rate=1.0, outer_momentum=0.0)
PIPELINE = PipelineId("p1")


class Held(Numbers):
    """A stage that says what it holds of a step."""

    version, num_parameters = 0, 2

    def __init__(self, fragments: int = 1) -> None:
        super().__init__(fragments)
        self.pending = 0
        self.dropped = 0

    def statistics(self) -> Any:
        return SimpleNamespace(stashed_microbatches=0, pending_microbatches=self.pending)

    def drop_pending(self) -> None:
        self.pending = 0
        self.dropped += 1


@asynccontextmanager
async def seat(circle: Circle, name: str = "a") -> AsyncIterator[Seat]:
    """A seat of that circle, kept."""
    stage = Held(circle.sync.fragments)
    averager = Sibling(circle, name, stage).averager
    context = SimpleNamespace(telemetry=Telemetry(), me=name)
    journal = Journal(context.telemetry, stage.name)
    arguments: list[Any] = [context, load().run_config(), stage, Inline(), averager, journal, Reason(log, "")]
    held = Seat(*arguments)
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(held.keep())
        try:
            yield held
        finally:
            keeping.cancel()


async def step(held: Seat, number: int, samples: int = 8) -> None:
    """One step of a route."""
    await held.begin(True)
    held.stage.learn(1.0)  # type: ignore[attr-defined]
    held.progressed()
    await held.committed(StepRef(PIPELINE, number), samples)


def given(held: Seat) -> list[Any]:
    averager: Any = held.averager
    return [(values[0], samples) for _, values, samples in averager.given]


def test_a_round_reaches_the_stage_although_the_route_broke_meanwhile() -> None:
    async def scenario() -> None:
        async with seat(Circle(SYNC, seconds=5.0)) as held:
            for number in (1, 2):
                await step(held, number)
            assert held.phase == "joining"
            cut_off = asyncio.ensure_future(step(held, 3))
            await asyncio.sleep(1.0)
            assert held.phase == "averaging"
            cut_off.cancel()
            await asyncio.wait([cut_off])
            await held.closed("cut")
            assert held.phase == "averaging"
            await held.begin(True)
            assert held.phase == "waiting"
            # The samples of the first round are in it; what comes next begins at what was agreed.
            assert not held.has_progress
            await held.closed("again")
            await held.settle()
            assert given(held) == [(3.0, 24), (3.0, 0)]

    run_virtual(scenario(), timeout=100.0)


@pytest.mark.parametrize("act", [Seat.settle, partial(Seat.begin, train=True)])
def test_who_waits_for_the_end_of_a_round_gets_through_although_it_is_always_invited(
    act: Callable[[Seat], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Averaging, "invited", True)

    async def scenario() -> None:
        async with seat(Circle(SYNC)) as held:
            await asyncio.sleep(1.005)
            assert held.phase == "averaging"
            rounds = len(given(held))
            await act(held)
            assert rounds <= len(given(held)) <= rounds + 2

    run_virtual(scenario(), timeout=10.0)


def test_a_round_is_recorded_once() -> None:
    async def scenario() -> None:
        async with seat(Circle(SYNC)) as held:
            for number in range(1, 7):
                await step(held, number)
            # The end of a run asks once more, though nothing was learned since.
            await held.settle()
            metrics = held._context.telemetry.metrics
            assert [metric.values["round"] for metric in metrics if metric.kind == "round"] == [0, 1]
            assert [receipt.round for receipt in held.status(0.0).receipts] == [0, 1]

    run_virtual(scenario(), timeout=100.0)


def test_steps_of_unequal_size_weigh_by_their_samples() -> None:
    async def scenario() -> None:
        async with seat(Circle(SYNC)) as held:
            for number, samples in enumerate((64, 16, 7, 80, 80, 80), 1):
                await step(held, number, samples)
            assert given(held) == [(3.0, 64 + 16 + 7), (6.0, 240)]

    run_virtual(scenario(), timeout=100.0)


def test_a_step_that_has_begun_keeps_numbers_out_of_the_stage() -> None:
    """Until then an invited sibling is waited for, and what has come waits."""

    async def scenario() -> None:
        circle = Circle(SyncSection.model_validate({**SYNC.model_dump(), "overlap": 2}))
        async with seat(circle, "a") as first, seat(circle, "b") as second:
            await second.begin(True)
            for number in (1, 2, 3):
                await step(first, number)
            await asyncio.sleep(5 * IDLE_SECONDS)
            assert first.rounds.is_beside
            assert first.status(0.0).beside
            assert not given(second)
            await second.committed(StepRef(PIPELINE, 1), 8)
            await until(lambda: second.averager.outer.round == 1)  # type: ignore[union-attr]
            # Both are idle by then, and hold what was agreed: the mean of 3 and 0, with weights 3 : 1.
            await until(lambda: not first.rounds.is_beside and not second.rounds.is_beside)
            assert first.stage.gather([0]).tolist() == second.stage.gather([0]).tolist() == [2.25] * 3
            assert (first.has_progress, second.has_progress) == (False, False)

    run_virtual(scenario(), timeout=100.0)


def test_an_idle_sibling_keeps_company_and_forgets_a_step_that_nobody_came_back_for() -> None:
    async def scenario() -> None:
        circle = Circle(SYNC)
        async with seat(circle, "a") as first, seat(circle, "b") as second:
            stage: Any = second.stage
            stage.pending = 2
            began = asyncio.get_running_loop().time()
            second.progressed()
            for number in (1, 2, 3):
                await step(first, number)
            assert asyncio.get_running_loop().time() - began == pytest.approx(second._config.lease.min, abs=0.1)
            assert (stage.dropped, given(second)) == (1, [(0.0, 0)])
            assert first.stage.gather([0]).tolist() == stage.gather([0]).tolist() == [3.0] * 3

    run_virtual(scenario(), timeout=100.0)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("pause", [0.0, 60.0], ids=["at once", "paused"])
def test_a_stage_in_a_route_joins_before_its_next_step_only_if_none_is_coming(index: int, pause: float) -> None:
    """It waits twice as long as steps take, not as long as the process or an evaluation has run."""

    async def scenario() -> None:
        await asyncio.sleep(1000.0)
        circle, loop = Circle(SYNC.model_copy(update={"inner_steps": 100})), asyncio.get_running_loop()
        b = Sibling(circle, "b", Held())
        async with seat(circle, "a") as held:
            held.rounds._is_first = False  # Its rounds are not what is looked at here.
            held.stage.index = StageIndex(index)
            held.unrouted.clear()

            async def work(number: int) -> None:
                await held.begin(True)
                await asyncio.sleep(1.0)
                held.progressed()
                await held.committed(StepRef(PIPELINE, number), 8)

            await work(1)
            assert held._step_seconds == 1.0
            for number in (2, 3):
                await work(number)
            await asyncio.sleep(pause)
            await work(4)
            done = loop.time()
            joining = asyncio.ensure_future(b.averager.synchronise(b.stage.gather([0]), 8))
            async with circle.changed:
                await circle.changed.wait_for(lambda: len(circle.joined) == 2)
            assert loop.time() - done == pytest.approx(2.0, abs=0.1)
            await joining

    run_virtual(scenario(), timeout=2000.0)


def test_a_step_that_does_not_come_on_is_no_secret() -> None:
    """A stage of its route is lost: siblings need not wait for the end of this step."""

    async def scenario() -> None:
        async with seat(Circle(SYNC.model_copy(update={"inner_steps": 100}))) as held:
            stage: Any = held.stage
            held.unrouted.clear()
            await held.begin(True)
            await asyncio.sleep(10.0)
            assert not held.averager.is_held_up(), "nobody knows how long its steps take"
            for number in (1, 2, 3):
                await asyncio.sleep(1.0)
                await step(held, number)
            await held.begin(True)
            stage.pending = 1
            await asyncio.sleep(2.9)
            assert not held.averager.is_held_up(), "steps take a second"
            await asyncio.sleep(0.2)
            assert held.averager.is_held_up()
            held.progressed()
            assert not held.averager.is_held_up()
            await held.committed(StepRef(PIPELINE, 4), 8)
            stage.pending = 0
            await asyncio.sleep(100.0)
            assert not held.averager.is_held_up(), "between two steps it joins at once"

    run_virtual(scenario(), timeout=200.0)


def copied(held: Held) -> LocalState:
    return LocalState(held.version, {"values/x": held.values.clone()})


def test_a_copy_says_what_its_values_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Held, "local_state", copied, raising=False)

    async def scenario() -> None:
        async with seat(Circle(SYNC, seconds=5.0)) as held:
            await step(held, 1)
            await step(held, 2)
            before = await held.copy()
            assert before.digest == held.averager.outer.digest  # type: ignore[union-attr]
            assert (before.samples, before.steps) == ((16,), 2)
            third = asyncio.ensure_future(step(held, 3))
            await asyncio.sleep(1.0)
            # A round is under way; its outcome is not known, so the values still belong to what is committed.
            assert (await held.copy()).digest == before.digest
            await third
            after = await held.copy()
            assert after.digest != before.digest
            assert (after.samples, after.steps) == ((0,), 0)

    run_virtual(scenario())


def test_before_its_numbers_have_arrived_nobody_gets_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Held, "local_state", copied, raising=False)

    async def scenario() -> None:
        async with seat(Circle(SYNC)) as held:
            # An heir knows what is committed, and its stage holds the numbers that it was built with.
            held.arrived.clear()
            with pytest.raises(StaleError):
                await held.copy()
            held.arrived.set()
            assert (await held.copy()).digest == held.averager.outer.digest  # type: ignore[union-attr]

    run_virtual(scenario())


def test_a_copy_never_stands_for_less_than_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with seat(Circle(SYNC)) as held:
            await step(held, 1)

            def late(stage: Held) -> LocalState:
                held.rounds.count(8, StepRef(PIPELINE, 2))
                return copied(stage)

            # A step is committed after it was asked for, and counted before it is given; or not even counted.
            monkeypatch.setattr(Held, "local_state", late, raising=False)
            with pytest.raises(StaleError, match="while it was copied"):
                await held.copy()
            monkeypatch.setattr(Held, "local_state", copied)
            held.is_told = lambda: False
            with pytest.raises(StaleError, match="while it was copied"):
                await held.copy()
            held.is_told = lambda: True
            copy = await held.copy()
            assert (copy.samples, copy.steps, copy.origins) == ((16,), 2, (StepRef(PIPELINE, 2),))

    run_virtual(scenario())


def test_only_a_seat_that_is_given_back_is_handed_over_and_to_one_heir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Held, "local_state", copied, raising=False)

    async def scenario() -> None:
        async with seat(Circle(SYNC, seconds=5.0)) as held:
            with pytest.raises(RefusedError):
                async with held.handing_over():
                    raise AssertionError
            held.is_closing = True
            assert not await held.is_handed_over()
            for number in (1, 2, 3):
                last_step = asyncio.ensure_future(step(held, number))
                if number < 3:
                    await last_step
            await asyncio.sleep(1.0)
            held.unrouted.clear()
            owed = torch.ones(3)
            held.averager.committed.feedback.load({0: owed})
            held.rounds.handover.resume({0: 2 * owed}, 0.25)
            async with held.handing_over() as last:
                with pytest.raises(RefusedError):
                    async with held.handing_over():
                        raise AssertionError
                waiting = asyncio.ensure_future(last())
                asked = asyncio.ensure_future(held.is_handed_over())
                await asyncio.sleep(1.0)
                assert not waiting.done()
                held.unrouted.set()
                copy = await waiting
                # The round that was under way is in it.
                assert (copy.samples, copy.steps) == ((0,), 0)
                assert copy.digest == held.averager.outer.digest  # type: ignore[union-attr]
                assert copy.carried.residuals[0].equal(owed)
                assert not asked.done()
            assert await asked
            # Nothing moves it any more.
            assert not held.rounds.gate.is_set()
            last_step.cancel()

    run_virtual(scenario())


def test_a_seat_whose_heir_fails_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Held, "local_state", copied, raising=False)

    async def scenario() -> None:
        async with seat(Circle(SYNC, seconds=5.0)) as held:
            held.is_closing = True
            await step(held, 1)
            asked: list[asyncio.Future[bool]] = []

            async def hand_over() -> None:
                async with held.handing_over() as last:
                    asked.append(asyncio.ensure_future(held.is_handed_over()))
                    await last()
                    raise DeadlineError("the heir is gone")

            with pytest.raises(DeadlineError):
                await hand_over()
            assert not await asked[0]
            assert held.rounds.gate.is_set()
            await step(held, 2)
            await step(held, 3)
            assert len(given(held)) == 1

    run_virtual(scenario())
