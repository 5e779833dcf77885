"""How many microbatches are under way: the formula, and how a place on a route comes to know its terms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import MessageError
from distqat.pipeline.pace import KEPT_TIMES, KEPT_TRIPS, TRAINER, Median, Pace, in_flight_bound
from distqat.pipeline.words import Ping, Pong

MOST = 64


def plain(num_stages: int, stage: int, latency: float, compute: float) -> int:
    """The bound of the architecture, for links that are all alike."""
    below = num_stages - 1 - stage
    return below + 1 + below * math.ceil(2.0 * latency / compute)


def test_without_latency_it_is_the_bound_of_1f1b() -> None:
    assert [in_flight_bound(4, stage) for stage in range(4)] == [4, 3, 2, 1]
    assert in_flight_bound(4, TRAINER) == 5
    assert [in_flight_bound(4, stage, (0.0,) * (3 - stage), 1.0) for stage in range(4)] == [4, 3, 2, 1]


@given(num_stages=st.integers(1, 9), stage=st.integers(0, 8), latency=st.sampled_from([0.1, 0.25, 0.4, 0.5, 1.0, 2.5]))
def test_links_that_are_all_alike_give_the_bound_of_the_architecture(
    num_stages: int, stage: int, latency: float
) -> None:
    stage = min(stage, num_stages - 1)
    trips = (2 * latency,) * (num_stages - 1 - stage)
    assert in_flight_bound(num_stages, stage, trips, 1.0) == plain(num_stages, stage, latency, 1.0)


def test_each_link_counts_for_itself() -> None:
    assert in_flight_bound(3, 0, (0.2, 3.5), 1.0) == 3 + 1 + 4
    assert in_flight_bound(3, 1, (3.5,), 1.0) == 2 + 4
    assert in_flight_bound(3, TRAINER, (9.0, 0.2, 3.5), 1.0) == 4 + 9 + 1 + 4


def test_what_is_not_worth_the_memory_is_left_out() -> None:
    assert in_flight_bound(2, 0, (0.049,), 1.0) == 2
    assert in_flight_bound(2, 0, (0.06,), 1.0) == 3
    assert in_flight_bound(2, 0, (1.04,), 1.0) == 3


def test_it_has_a_cap_and_waits_for_measurements() -> None:
    assert in_flight_bound(4, 0, (100.0,) * 3, 1.0, MOST) == MOST
    assert in_flight_bound(4, 0, (100.0,) * 3, 0.0, MOST) == 4
    assert in_flight_bound(4, 0, most=2) == 2


@given(
    trips=st.lists(st.floats(0, 1e3), max_size=6),
    slowest=st.floats(1e-6, 1e3),
    most=st.integers(1, 4096),
    stage=st.integers(-1, 3),
)
def test_it_is_never_below_the_plain_bound_nor_above_the_cap(
    trips: list[float], slowest: float, most: int, stage: int
) -> None:
    bound = in_flight_bound(4, stage, trips, slowest, most)
    assert min(most, 4 - stage) <= bound <= most
    assert bound <= in_flight_bound(4, stage, [trip * 2 for trip in trips], slowest, most)


def test_a_few_slow_runs_do_not_move_the_median() -> None:
    median = Median()
    assert not median.is_known
    assert median.seconds == 0.0
    for seconds in (9.0, 1.0, 1.1, 1.2, 8.0, 1.0, 1.1):
        median.add(seconds)
    assert median.seconds == 1.1
    for _ in range(KEPT_TIMES):
        median.add(5.0)
    assert median.seconds == 5.0


def exchange(above: Pace, below: Pace, trip: float, now: float = 0.0) -> None:
    above.answered(below.answer(above.ping(now)), now + trip)


def work(pace: Pace, forward: float, backward: float) -> None:
    pace.worked("forward", forward)
    pace.worked("backward", backward)


def chain() -> list[Pace]:
    """The trainer, then three stages; the middle one is the slowest, the last link the longest."""
    places = [Pace(3, stage, MOST) for stage in (TRAINER, 0, 1, 2)]
    work(places[1], 0.1, 0.2)
    work(places[2], 0.3, 0.7)
    places[3].worked("loss", 0.5)
    return places


def talk(places: list[Pace], trips: tuple[float, ...], times: int) -> None:
    for _ in range(times):
        for above, below, trip in zip(places, places[1:], trips, strict=False):
            exchange(above, below, trip)


def test_every_place_learns_of_the_slowest_stage_and_of_all_links_below() -> None:
    places = chain()
    trips = (0.5, 1.5, 4.0)
    # One exchange for each hop that news has to cross.
    talk(places, trips, 3)
    assert [place.statistics().slowest for place in places] == [1.0] * 4
    assert [place.round_trips for place in places] == [(0.5, 1.5, 4.0), (1.5, 4.0), (4.0,), ()]
    assert [place.bound for place in places] == [4 + 1 + 2 + 4, 3 + 2 + 4, 2 + 4, 1]
    assert repr(places[2]) == "<Pace 6 in flight: 1000.0 ms a microbatch, round trips [4000.0] ms>"


def test_until_the_route_is_known_the_bound_is_the_plain_one() -> None:
    places = [Pace(3, stage, MOST) for stage in (TRAINER, 0, 1, 2)]
    talk(places, (0.5, 1.5, 4.0), 3)
    assert [place.bound for place in places] == [4, 3, 2, 1]


def test_a_ping_that_waited_behind_a_long_message_does_not_count() -> None:
    above, below = Pace(2, 0, MOST), Pace(2, 1, MOST)
    for trip in (0.3, 7.0, 0.2, 5.0):
        exchange(above, below, trip)
    assert above.round_trips == (0.2,)
    for _ in range(KEPT_TRIPS):
        exchange(above, below, 1.0)
    assert above.round_trips == (1.0,)


def test_coding_and_sending_are_part_of_the_round_trip_and_may_be_the_slowest_of_all() -> None:
    above, below = Pace(2, 0, MOST), Pace(2, 1, MOST)
    work(above, 0.5, 0.5)
    below.worked("loss", 1.0)
    above.handled("below", "encode", 0.1)
    above.handled("below", "send", 0.2)
    above.handled("below", "decode", 0.1)
    below.handled("above", "encode", 0.3)
    below.handled("above", "send", 0.1)
    below.handled("above", "decode", 0.2)
    exchange(above, below, 1.0)
    assert list(above.round_trips) == pytest.approx([2.0])
    assert above.statistics().slowest == 1.0
    assert above.bound == 2 + 2
    # A link that takes longer than the stages sets the pace; more in flight would only queue up.
    for _ in range(KEPT_TIMES):
        above.handled("below", "send", 3.9)
    assert above.statistics().slowest == pytest.approx(4.0)
    assert above.bound == 2 + 2


def test_an_answer_to_nothing_is_refused() -> None:
    pace = Pace(2, 0, MOST)
    with pytest.raises(MessageError, match="ping 1"):
        pace.answered(Pong(1), 0.0)
    ping = pace.ping(1.0)
    with pytest.raises(MessageError, match=f"ping {ping.serial + 1}"):
        pace.answered(Pong(ping.serial + 1), 2.0)
    with pytest.raises(MessageError, match="1 hops below stage 1 of 2"):
        pace.answered(Pong(ping.serial, round_trips=(1.0,)), 2.0)
    pace.answered(Pong(ping.serial), 2.0)
    with pytest.raises(MessageError):
        pace.answered(Pong(ping.serial), 2.0)
    assert pace.ping(3.0) == Ping(ping.serial + 1)
