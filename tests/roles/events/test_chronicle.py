"""What a trainer tells of its routes, and how it measures a recovery."""

from __future__ import annotations

import asyncio

from distqat.event_log import EventLog
from distqat.events import Event, Kind
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex
from distqat.pipeline.route import HopError, Route
from distqat.roles.epochs import epoch_of_hops, order_and_attempt
from distqat.roles.events.chronicle import Chronicle
from tests.support import run_virtual

NAME = PipelineId("p1-00ff")
SEATS = tuple(Seat(PeerId(letter * 40), Endpoint(letter, 1), StageIndex(n)) for n, letter in enumerate("ab"))


def route(order: int, attempt: int = 1) -> Route:
    return Route(NAME, epoch_of_hops(order, attempt), SEATS)


def kinds(events: list[Event]) -> list[Kind]:
    return [event.kind for event in events]


def test_epochs_of_hops_are_those_of_orders_and_grow() -> None:
    assert order_and_attempt(epoch_of_hops(3, 7)) == (3, 7)
    assert epoch_of_hops(3, 7) < epoch_of_hops(3, 8) < epoch_of_hops(4, 1)


def test_a_recovery_lasts_from_the_break_to_the_first_commit() -> None:
    log = EventLog("c" * 40)

    async def scenario() -> None:
        chronicle = Chronicle(log, NAME)
        chronicle.opens(route(1))
        chronicle.opened(0)
        chronicle.committed(1)
        await asyncio.sleep(5.0)
        chronicle.broke(HopError("it is gone", SEATS[1].peer, "GoneError"), 1)
        for attempt in (2, 3):
            await asyncio.sleep(0.5)
            chronicle.opens(route(1, attempt))
            chronicle.broke(HopError("it is gone", SEATS[1].peer, "GoneError"), 1)
        await asyncio.sleep(0.5)
        chronicle.opens(route(2))
        chronicle.opened(1)
        chronicle.replays(2)
        await asyncio.sleep(0.25)
        chronicle.committed(2)
        chronicle.committed(3)

    run_virtual(scenario())
    events = log.since(0)
    # What breaks again in the same way is told once.
    assert kinds(events) == [
        Kind.EPOCH_OPENED, Kind.HOP_BROKE, Kind.EPOCH_OPENED, Kind.STEP_REPLAYED, Kind.RECOVERED,
    ]  # fmt: skip
    broke, recovered = events[1], events[4]
    assert (broke.subject.peer, broke.subject.how, broke.subject.step) == (SEATS[1].peer, "GoneError", 1)
    assert (broke.subject.epoch, broke.subject.attempt) == (1, 1)
    assert broke.text == "pipeline p1-00ff broke at bbbbbbbb: GoneError: it is gone"
    assert (recovered.subject.step, recovered.subject.seconds, recovered.subject.epoch) == (2, 1.75, 2)
    assert events[2].subject.attempt == 1


def test_a_break_of_another_kind_and_one_after_an_opening_are_told_anew() -> None:
    log = EventLog("c" * 40)

    async def scenario() -> None:
        chronicle = Chronicle(log, NAME)
        chronicle.opens(route(1))
        for reason in ("one", "two", "two"):
            chronicle.broke(HopError(reason, SEATS[0].peer), 0)
        chronicle.opened(0)
        chronicle.broke(HopError("two", SEATS[0].peer), 0)

    run_virtual(scenario())
    assert kinds(log.since(0)) == [Kind.HOP_BROKE, Kind.HOP_BROKE, Kind.EPOCH_OPENED, Kind.HOP_BROKE]


def test_a_route_that_is_left_for_another_order_counts_as_interrupted() -> None:
    log = EventLog("c" * 40)

    async def scenario() -> None:
        chronicle = Chronicle(log, NAME)
        chronicle.opens(route(1))
        chronicle.opened(0)
        chronicle.left()
        await asyncio.sleep(2.0)
        chronicle.opens(route(2))
        chronicle.opened(4)
        chronicle.committed(5)
        for _ in range(2):
            chronicle.over(5, is_finished=True)
        chronicle.over(5, is_finished=False)

    run_virtual(scenario())
    events = log.since(0)
    assert kinds(events) == [Kind.EPOCH_OPENED, Kind.EPOCH_OPENED, Kind.RECOVERED, Kind.PIPELINE_FINISHED]
    assert events[2].subject.seconds == 2.0
